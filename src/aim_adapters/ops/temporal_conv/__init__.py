"""Convolution of every token's features over the frames of its clip, and GELU."""

from aim_adapters.ops.temporal_conv.api import Case, case_of, choose, temporal_conv_gelu

__all__ = ["Case", "case_of", "choose", "temporal_conv_gelu"]
