"""The ways to adapt one image model that are compared, each a video classifier by name."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import LayerScale
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.recipes import get_recipe
from aim_adapters.training import build_baseline

# Learning rates, by kind of way and variant: the best of those that the experiment "rates" tries on DINOv2.
DINOV2_RATES = {
    "frozen": {"order": 1e-1, "appearance": 3e-2},
    "joint": {"order": 3e-4, "appearance": 3e-4},
    "conv": {"order": 3e-4, "appearance": 3e-3},
    "lora-temporal": {"order": 1e-3, "appearance": 1e-3},
    "probe": {"order": 3e-2, "appearance": 1e-2},
    "attentive": {"order": 3e-4, "appearance": 1e-3},
    "full-space-time": {"order": 3e-5, "appearance": 1e-5},
}
# By image model. CLIP's are those of DINOv2, but for one that is too high for it.
RATES = {
    "dinov2-small": DINOV2_RATES,
    "clip-base": DINOV2_RATES | {"conv": {"order": 3e-4, "appearance": 3e-4}},
}
ALIKE = {"conv-alone": "conv", "both": "conv", "lora": "lora-temporal", "full": "full-space-time"}  # others: "joint"
SHARE_OF_NEW = 10.0  # of the learning rate of pre-trained weights that train, for what is new beside them


class Backbone(NamedTuple):
    """An image model with pre-trained weights.

    Attributes:
        model: Its name in timm.
        mean: Mean of its pixels.
        std: Their standard deviation.
        size: Side of the square images that it adapts to, in pixels.
    """

    model: str
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    size: int = 84


BACKBONES = {
    "dinov2-small": Backbone("vit_small_patch14_dinov2.lvd142m"),
    "clip-base": Backbone(
        "vit_base_patch16_clip_quickgelu_224.openai",
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        size=96,
    ),
}

WRAPS: dict[str, dict[str, Any]] = {
    "frozen": {"components": ()},
    "spatial": {"components": ("spatial",)},
    "temporal": {"components": ("temporal", "spatial")},
    "joint": {},
    "input": {"temporal_input_adapter": True},
    "conv": {"temporal": "conv"},
    "conv-alone": {"temporal": "conv", "components": ("temporal",)},
    "both": {"temporal": "both"},
    "alternate": {"layers": "alternate"},
    "third": {"layers": (0, 3, 6, 9)},
    "top": {"layers": "top_half"},
    "bottom": {"layers": "bottom_half"},
    "ratio-0.0625": {"bottleneck": 0.0625},
    "ratio-0.125": {"bottleneck": 0.125},
    "ratio-0.5": {"bottleneck": 0.5},
    "modules": {"attention": "sdpa"},
    "linear": {"components": ("spatial",), "adapter_activation": "none"},
}
EXECUTIONS: dict[str, dict[str, Any]] = {
    "fast": {},
    "balanced": {"memory": "balanced"},
    "low": {"memory": "low"},
    "fp8": {"frozen_precision": "fp8"},
    "modules": {"fused": False},
}
BASELINES = {
    "lora": "lora",
    "lora-temporal": "lora-temporal",
    "full": "full",
    "full-space-time": "full-space-time",
    "probe": "probe",
    "attentive": "attentive-probe",
}
TUNED = ("full", "full-space-time")
# Without what it drops at random, as `wrap_image_model` drops nothing.
RECIPE = dataclasses.replace(get_recipe("small-data"), head_dropout=0.0, drop_path=0.0)


def weights_of(name: str, folder: Path) -> Path:
    """Return the file of a backbone's weights in the folder that `benchmarks.motion.weights` wrote."""
    return folder / f"{name}.safetensors"


def load_backbone(name: str, folder: Path, size: int) -> nn.Module:
    """Load an image model for square images of so many pixels from the folder of weights."""
    overlay = {"file": str(weights_of(name, folder))}
    model: nn.Module = timm.create_model(
        BACKBONES[name].model, pretrained=True, pretrained_cfg_overlay=overlay, img_size=size, num_classes=0
    )
    return model.eval()


def build(way: str, image_model: nn.Module, *, classes: int, frames: int, options: dict[str, Any]) -> nn.Module:
    """Return a video classifier that maps ``[B, T, 3, H, W]`` to ``[B, K]``, around a copy of an image model.

    Args:
        way: A name in `WRAPS`, `EXECUTIONS` or `BASELINES`; ``"random"`` and ``"average"`` are AIM's.
        image_model: On the device on which it is to run.
        classes: Number of classes K.
        frames: Frames of a clip T.
        options: Settings of `wrap_image_model` beside those of the way.
    """
    model = copy.deepcopy(image_model)
    if way in BASELINES:
        built = build_baseline(BASELINES[way], model=model, num_classes=classes, num_frames=frames, recipe=RECIPE)
        if way not in TUNED:
            _hold_in_bfloat16(built)
        return built
    if way == "random":
        _draw_weights(model)
    settings = WRAPS.get(way, {})
    aim.wrap_image_model(model, num_frames=frames, num_classes=classes, **(settings | options))
    if next(model.parameters()).is_cuda:
        aim.set_base_dtype(model, torch.bfloat16)
    aim.set_execution(model, **EXECUTIONS.get(way, {}))
    return model


def _draw_weights(model: nn.Module) -> None:
    """Draw the weights of an image model of timm anew."""
    model.init_weights()
    for layer in model.modules():
        if isinstance(layer, LayerScale):  # else 1e-5: what is in front of it is trained, not frozen
            nn.init.ones_(layer.gamma)


def _hold_in_bfloat16(model: nn.Module) -> None:
    """Hold frozen weights in the dtype that products are computed in, as `aim.set_base_dtype` does."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_cuda:
            parameter.data = parameter.data.to(torch.bfloat16)


def rate_of(way: str, variant: str, backbone: str = "dinov2-small") -> float:
    """Return the learning rate of a way on a variant; of pre-trained weights, where they train."""
    kinds = RATES[backbone]
    rates = kinds.get(ALIKE.get(way, way), kinds["joint"])
    return rates.get(variant, rates["order"])


def groups_of(model: nn.Module, way: str, weight_decay: float) -> list[dict[str, Any]]:
    """Return what trains as an optimizer's groups, with the ``share`` of the rate that each has."""
    if way not in BASELINES:
        return [group | {"share": 1.0} for group in aim.adapter_param_groups(model, weight_decay=weight_decay)]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay * (parameter.ndim > 1 and len(parameter) > 1)  # tokens and positions are [1, ...]
            pretrained = name.startswith("image_model.") or ".copies." in name
            share = SHARE_OF_NEW if way in TUNED and not pretrained else 1.0
            groups.setdefault((decay, share), []).append(parameter)
    return [{"params": chosen, "weight_decay": decay, "share": share} for (decay, share), chosen in groups.items()]


def normalized(frames: Tensor, backbone: Backbone) -> Tensor:
    """Return pixels ``[..., 3, H, W]``, uint8, as the image model reads them, float32."""
    mean, std = _statistics(backbone, frames.device)
    return (frames.float() - mean) / std


@functools.lru_cache
def _statistics(backbone: Backbone, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (255 * torch.tensor(values, device=device).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    return mean, std
