"""What a wrapped model costs."""

from aim_adapters.analysis.complexity import FlopCount, count_flops

__all__ = ["FlopCount", "count_flops"]
