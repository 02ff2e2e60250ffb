"""The cost of a wrapped model."""

from aim_adapters.analysis.complexity import FlopCount, count_flops, count_root_flops

__all__ = ["FlopCount", "count_flops", "count_root_flops"]
