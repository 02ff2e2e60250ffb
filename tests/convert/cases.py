"""Small reference files, and models of every library that hold their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from aim_adapters.convert import load_official_checkpoint
from tests.oracle import holders
from tests.oracle.reference import CLIP, IMAGENET, swin_file, vit_file
from tests.oracle.test_swin import DEPTHS, HEADS, WINDOW, timm_swin, torchvision_twin
from tests.oracle.vit import Size, Weights, random_weights

Holder = Callable[[Weights, Size], nn.Module]

VITS: dict[str, tuple[Size, Holder]] = {
    "clip in timm": (CLIP, holders.timm),
    "clip in open_clip": (CLIP, holders.open_clip),
    "imagenet in timm": (IMAGENET, holders.timm),
    "imagenet in transformers": (IMAGENET, holders.hf_vit),
    "imagenet in torchvision": (IMAGENET, holders.torchvision),
}
FRAMES = 4


def clip_file(**arguments: Any) -> Weights:
    return vit_file(random_weights(CLIP), CLIP, FRAMES, **arguments)


def clip_base(seed: int = 0) -> nn.Module:
    return holders.timm(random_weights(CLIP, seed), CLIP)


def small_swin_file(frames: int = 8) -> Weights:
    state = {key: tensor.clone() for key, tensor in timm_swin().state_dict().items()}
    return swin_file(state, depths=DEPTHS, heads=HEADS, window=WINDOW, frames=frames)


def swin_base(library: str, *, other_weights: bool = False) -> nn.Module:
    model = timm_swin()
    if other_weights:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
    return model if library == "timm" else torchvision_twin(model)


def load(model: nn.Module, state: Any, **arguments: Any) -> Any:
    """Load with the head width of these small models."""
    return load_official_checkpoint(model, state, **{"head_width": 16, **arguments})


def video_of(frames: int = FRAMES, image: int = 16, clips: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(clips, frames, 3, image, image, generator=generator, dtype=torch.float64)


def run(model: nn.Module, video: Tensor) -> Any:
    with torch.no_grad():
        out = model(video)
    return getattr(out, "logits", out)
