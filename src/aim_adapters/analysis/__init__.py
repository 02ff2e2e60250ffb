"""What a wrapped model costs, and what it looks at."""

from aim_adapters.analysis.attention_maps import AttentionMaps, attention_maps
from aim_adapters.analysis.complexity import FlopCount, count_flops, count_root_flops

__all__ = ["AttentionMaps", "FlopCount", "attention_maps", "count_flops", "count_root_flops"]
