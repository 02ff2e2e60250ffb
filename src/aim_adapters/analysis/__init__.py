"""What a wrapped model costs, what it looks at, and whether this machine computes it as it should.

Each name is imported when it is first used: what a checkpoint needs to know of costs brings in no videos.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aim_adapters.analysis.animation import save_gif as save_gif
    from aim_adapters.analysis.animation import save_video as save_video
    from aim_adapters.analysis.complexity import FlopCount as FlopCount
    from aim_adapters.analysis.complexity import count_flops as count_flops
    from aim_adapters.analysis.complexity import count_root_flops as count_root_flops
    from aim_adapters.analysis.explanation import Explanation as Explanation
    from aim_adapters.analysis.explanation import explain as explain
    from aim_adapters.analysis.faithfulness import DeletionCurves as DeletionCurves
    from aim_adapters.analysis.faithfulness import deletion_curves as deletion_curves
    from aim_adapters.analysis.maps import AttentionMaps as AttentionMaps
    from aim_adapters.analysis.maps import attention_maps as attention_maps
    from aim_adapters.analysis.ordering import FrameOrder as FrameOrder
    from aim_adapters.analysis.ordering import frame_order as frame_order
    from aim_adapters.analysis.pictures import film_strip as film_strip
    from aim_adapters.analysis.pictures import overlay as overlay
    from aim_adapters.analysis.profiling import Cost as Cost
    from aim_adapters.analysis.profiling import Profile as Profile
    from aim_adapters.analysis.profiling import profile_model as profile_model
    from aim_adapters.analysis.variants import VARIANTS as VARIANTS
    from aim_adapters.analysis.variants import compare_variants as compare_variants
    from aim_adapters.analysis.variants import variants_of as variants_of
    from aim_adapters.analysis.verification import Check as Check
    from aim_adapters.analysis.verification import Verification as Verification
    from aim_adapters.analysis.verification import verify as verify

_MODULES = {
    "AttentionMaps": "maps",
    "Check": "verification",
    "Cost": "profiling",
    "DeletionCurves": "faithfulness",
    "Explanation": "explanation",
    "FlopCount": "complexity",
    "FrameOrder": "ordering",
    "Profile": "profiling",
    "VARIANTS": "variants",
    "Verification": "verification",
    "attention_maps": "maps",
    "compare_variants": "variants",
    "count_flops": "complexity",
    "count_root_flops": "complexity",
    "deletion_curves": "faithfulness",
    "explain": "explanation",
    "film_strip": "pictures",
    "frame_order": "ordering",
    "overlay": "pictures",
    "profile_model": "profiling",
    "save_gif": "animation",
    "save_video": "animation",
    "variants_of": "variants",
    "verify": "verification",
}

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
