"""The cost of a wrapped model in arithmetic."""

from aim_adapters.analysis.complexity import FlopCount, count_flops

__all__ = ["FlopCount", "count_flops"]
