"""Give a tiny image model, plain, wrapped or trained, with the same weights each time."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import aim_adapters as aim
from tests.backbones.cases import scramble, wake

SIZE: dict[str, Any] = {
    "img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5,
}  # fmt: skip
FRAMES = 4
PREPROCESSING = {"mean": (0.5, 0.25, 0.125), "std": (1.0, 0.5, 0.25)}


def base(name: str | None = None, **changes: Any) -> VisionTransformer:
    """Return the image model, with the same random weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VisionTransformer(**{**SIZE, **changes})
    if name is not None:
        architecture, _, tag = name.partition(".")
        model.pretrained_cfg = {"architecture": architecture, "tag": tag, **PREPROCESSING}
    return scramble(model).eval()


def wrapped(name: str | None = None, **arguments: Any) -> VisionTransformer:
    return aim.wrap_image_model(base(name), **{"num_frames": FRAMES, **arguments})


def trained(name: str | None = None, **arguments: Any) -> VisionTransformer:
    """Return a wrapped model, with the same random adapters each time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return wake(wrapped(name, **arguments))


def video(clips: int = 2, frames: int = FRAMES, channels: int = 3) -> Tensor:
    return torch.randn(clips, frames, channels, 16, 16, generator=torch.Generator().manual_seed(0))


def run(model: nn.Module, frames: int = FRAMES, dtype: torch.dtype = torch.float32) -> Tensor:
    with torch.no_grad():
        return model(video(frames=frames).to(dtype))
