"""The page that shows an explanation: one HTML file that needs nothing else."""

from aim_adapters.analysis.viewer.packing import PackedMaps, fit_budget, pack_maps
from aim_adapters.analysis.viewer.page import LIMIT, Variant, build_page
from aim_adapters.analysis.viewer.scene import build_scene, class_rows, describe_deletion, describe_order, ranked

__all__ = [
    "LIMIT",
    "PackedMaps",
    "Variant",
    "build_page",
    "build_scene",
    "class_rows",
    "describe_deletion",
    "describe_order",
    "fit_budget",
    "pack_maps",
    "ranked",
]
