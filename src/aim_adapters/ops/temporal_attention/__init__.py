"""Attention of every token position over the frames of its clip."""

from aim_adapters.ops.temporal_attention.api import (
    Case,
    case_of,
    choose,
    temporal_attention,
    temporal_attention_packed,
    temporal_attention_weights,
)

__all__ = [
    "Case",
    "case_of",
    "choose",
    "temporal_attention",
    "temporal_attention_packed",
    "temporal_attention_weights",
]
