"""What a wrapped model costs, what it looks at, and whether this machine computes it as it should."""

from aim_adapters.analysis.animation import save_gif, save_video
from aim_adapters.analysis.complexity import FlopCount, count_flops, count_root_flops
from aim_adapters.analysis.explanation import Explanation, explain
from aim_adapters.analysis.faithfulness import DeletionCurves, deletion_curves
from aim_adapters.analysis.maps import AttentionMaps, attention_maps
from aim_adapters.analysis.ordering import FrameOrder, frame_order
from aim_adapters.analysis.pictures import film_strip, overlay
from aim_adapters.analysis.profiling import Cost, Profile, profile_model
from aim_adapters.analysis.variants import VARIANTS, compare_variants, variants_of
from aim_adapters.analysis.verification import Check, Verification, verify

__all__ = [
    "VARIANTS",
    "AttentionMaps",
    "Check",
    "Cost",
    "DeletionCurves",
    "Explanation",
    "FlopCount",
    "FrameOrder",
    "Profile",
    "Verification",
    "attention_maps",
    "compare_variants",
    "count_flops",
    "count_root_flops",
    "deletion_curves",
    "explain",
    "film_strip",
    "frame_order",
    "overlay",
    "profile_model",
    "save_gif",
    "save_video",
    "variants_of",
    "verify",
]
