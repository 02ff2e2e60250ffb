"""Attention of every token position over the frames of its clip."""

from aim_adapters.ops.temporal_attention.api import Choice, choose, temporal_attention, temporal_attention_weights

__all__ = ["Choice", "choose", "temporal_attention", "temporal_attention_weights"]
