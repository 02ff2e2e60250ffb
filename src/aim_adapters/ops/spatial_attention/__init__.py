"""Attention of the tokens of every frame, or of every window of one, among themselves."""

from aim_adapters.ops.spatial_attention.api import Case, case_of, choose, spatial_attention

__all__ = ["Case", "case_of", "choose", "spatial_attention"]
