"""Attention of the tokens of every frame, or of every window of one, among themselves."""

from aim_adapters.ops.spatial_attention.api import Case, case_of, choose, spatial_attention
from aim_adapters.ops.spatial_attention.reference import attention_weights as spatial_attention_weights
from aim_adapters.ops.spatial_attention.tiles import MAX_WINDOW_TOKENS

__all__ = ["MAX_WINDOW_TOKENS", "Case", "case_of", "choose", "spatial_attention", "spatial_attention_weights"]
