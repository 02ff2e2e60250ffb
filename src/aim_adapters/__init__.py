"""Adapt any pre-trained image transformer to video by training a few percent of its weights (AIM, ICLR 2023)."""

import sys
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, Any

from aim_adapters.version import __version__ as __version__

if TYPE_CHECKING:
    from aim_adapters import integrations as integrations
    from aim_adapters.adapters import add_adapter, average_adapters, delete_adapter, list_adapters, set_adapter
    from aim_adapters.analysis import AttentionMaps, Explanation, FlopCount, attention_maps, count_flops, explain
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
    from aim_adapters.core import GraphRow, is_wrapped
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
    from aim_adapters.graphs import explain_graphs, graph, ungraph
    from aim_adapters.merging import merge_adapters
    from aim_adapters.parameters import (
        ParameterCount,
        adapter_param_groups,
        count_parameters,
        print_trainable_parameters,
        trainable_parameters,
    )
    from aim_adapters.recipes import list_recipes
    from aim_adapters.training import FitResult, fit
    from aim_adapters.video import Evaluation, evaluate, extract_features, predict
    from aim_adapters.wrapping import disable_adapters, unwrap_image_model, wrap_image_model

# File or room of each name, imported when the name is first used: so `aim-adapters --help` answers before PyTorch is
# imported, which takes seconds.
_LAZY = {
    "AIMConfig": "config",
    "AIMError": "errors",
    "AttentionMaps": "analysis",
    "Backbone": "backbones",
    "BaseRequest": "backbones",
    "BlockAttention": "execution",
    "BlockExecution": "execution",
    "CheckpointError": "errors",
    "ClipSpec": "clip_spec",
    "ConfigError": "errors",
    "Evaluation": "video",
    "Explanation": "analysis",
    "FitResult": "training",
    "FlopCount": "analysis",
    "GraphRow": "core",
    "InputError": "errors",
    "LoadReport": "checkpoint",
    "ParameterCount": "parameters",
    "StateError": "errors",
    "TrainingError": "errors",
    "UnsupportedKernelError": "errors",
    "UnsupportedModelError": "errors",
    "VideoError": "errors",
    "adapter_param_groups": "parameters",
    "adapter_state_dict": "checkpoint",
    "add_adapter": "adapters",
    "attention_maps": "analysis",
    "average_adapters": "adapters",
    "clip_spec": "clip_spec",
    "convert_official_checkpoint": "convert",
    "count_flops": "analysis",
    "count_parameters": "parameters",
    "delete_adapter": "adapters",
    "disable_adapters": "wrapping",
    "evaluate": "video",
    "explain": "analysis",
    "explain_attention": "execution",
    "explain_execution": "execution",
    "explain_graphs": "graphs",
    "extract_features": "video",
    "fit": "training",
    "graph": "graphs",
    "is_wrapped": "core",
    "list_adapters": "adapters",
    "list_backbones": "backbones",
    "list_recipes": "recipes",
    "load_adapter_state_dict": "checkpoint",
    "load_adapters": "checkpoint",
    "load_official_checkpoint": "convert",
    "load_video_model": "checkpoint",
    "merge_adapters": "merging",
    "predict": "video",
    "print_trainable_parameters": "parameters",
    "push_to_hub": "checkpoint",
    "register_backbone": "backbones",
    "save_adapters": "checkpoint",
    "set_adapter": "adapters",
    "set_attention": "execution",
    "set_base_dtype": "execution",
    "set_execution": "execution",
    "set_num_frames": "frames",
    "trainable_parameters": "parameters",
    "ungraph": "graphs",
    "unwrap_image_model": "wrapping",
    "wrap_image_model": "wrapping",
}
_ROOMS = {module.name for module in iter_modules(__path__) if not module.name.startswith("_")}

__all__ = [
    "AIMConfig",
    "AIMError",
    "AttentionMaps",
    "Backbone",
    "BaseRequest",
    "BlockAttention",
    "BlockExecution",
    "CheckpointError",
    "ClipSpec",
    "ConfigError",
    "Evaluation",
    "Explanation",
    "FitResult",
    "FlopCount",
    "GraphRow",
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
    "attention_maps",
    "average_adapters",
    "clip_spec",
    "convert_official_checkpoint",
    "count_flops",
    "count_parameters",
    "delete_adapter",
    "disable_adapters",
    "evaluate",
    "explain",
    "explain_attention",
    "explain_execution",
    "explain_graphs",
    "extract_features",
    "fit",
    "graph",
    "is_wrapped",
    "list_adapters",
    "list_backbones",
    "list_recipes",
    "load_adapter_state_dict",
    "load_adapters",
    "load_official_checkpoint",
    "load_video_model",
    "merge_adapters",
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
    "ungraph",
    "unwrap_image_model",
    "wrap_image_model",
]


class _Package(ModuleType):
    """This package: importing a file does not hide the function that has its name, such as ``clip_spec``."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _LAZY and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_ROOMS})
