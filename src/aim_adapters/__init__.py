"""Adapt any pre-trained image transformer to video by training a few per cent of its weights (AIM, ICLR 2023)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aim_adapters import integrations as integrations
from aim_adapters.adapters import add_adapter, average_adapters, delete_adapter, list_adapters, set_adapter
from aim_adapters.analysis import FlopCount, count_flops
from aim_adapters.backbones import Backbone, BaseRequest, list_backbones, register_backbone
from aim_adapters.checkpoint import (
    LoadReport,
    adapter_state_dict,
    load_adapter_state_dict,
    load_adapters,
    load_video_model,
    push_to_hub,
    save_adapters,
)
from aim_adapters.clip_spec import ClipSpec, clip_spec
from aim_adapters.config import AIMConfig
from aim_adapters.convert import convert_official_checkpoint, load_official_checkpoint
from aim_adapters.core import is_wrapped
from aim_adapters.errors import (
    AIMError,
    CheckpointError,
    ConfigError,
    InputError,
    StateError,
    TrainingError,
    UnsupportedKernelError,
    UnsupportedModelError,
    VideoError,
)
from aim_adapters.execution import (
    BlockAttention,
    BlockExecution,
    explain_attention,
    explain_execution,
    set_attention,
    set_base_dtype,
    set_execution,
)
from aim_adapters.frames import set_num_frames
from aim_adapters.parameters import (
    ParameterCount,
    adapter_param_groups,
    count_parameters,
    print_trainable_parameters,
    trainable_parameters,
)
from aim_adapters.version import __version__ as __version__
from aim_adapters.wrapping import disable_adapters, unwrap_image_model, wrap_image_model

if TYPE_CHECKING:
    from aim_adapters.recipes import list_recipes
    from aim_adapters.training import FitResult, fit
    from aim_adapters.video import Evaluation, evaluate, extract_features, predict

# Names whose rooms are imported when they are first used.
_LAZY = {
    "Evaluation": "video",
    "FitResult": "training",
    "evaluate": "video",
    "extract_features": "video",
    "fit": "training",
    "list_recipes": "recipes",
    "predict": "video",
}
_ROOMS = ("recipes", "training", "video")

__all__ = [
    "AIMConfig",
    "AIMError",
    "Backbone",
    "BaseRequest",
    "BlockAttention",
    "BlockExecution",
    "CheckpointError",
    "ClipSpec",
    "ConfigError",
    "Evaluation",
    "FitResult",
    "FlopCount",
    "InputError",
    "LoadReport",
    "ParameterCount",
    "StateError",
    "TrainingError",
    "UnsupportedKernelError",
    "UnsupportedModelError",
    "VideoError",
    "adapter_param_groups",
    "adapter_state_dict",
    "add_adapter",
    "average_adapters",
    "clip_spec",
    "convert_official_checkpoint",
    "count_flops",
    "count_parameters",
    "delete_adapter",
    "disable_adapters",
    "evaluate",
    "explain_attention",
    "explain_execution",
    "extract_features",
    "fit",
    "is_wrapped",
    "list_adapters",
    "list_backbones",
    "list_recipes",
    "load_adapter_state_dict",
    "load_adapters",
    "load_official_checkpoint",
    "load_video_model",
    "predict",
    "print_trainable_parameters",
    "push_to_hub",
    "register_backbone",
    "save_adapters",
    "set_adapter",
    "set_attention",
    "set_base_dtype",
    "set_execution",
    "set_num_frames",
    "trainable_parameters",
    "unwrap_image_model",
    "wrap_image_model",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_ROOMS})
