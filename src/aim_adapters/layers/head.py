"""Provide the end of a video model: frames averaged, then one linear layer per clip."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aim_adapters.layers.linear import zero_linear


def new_classifier(
    dim: int, num_classes: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> nn.Linear:
    """Make a classification layer as the reference does: weights N(0, 0.01), bias 0."""
    layer = zero_linear(dim, num_classes, device=device, dtype=dtype)
    nn.init.normal_(layer.weight, std=0.01)
    return layer


def average_frames(x: Tensor, num_frames: int) -> Tensor:
    """Average over the frames of each clip.

    Args:
        x: One row per frame, ``[B*T, ...]``.
        num_frames: T.

    Returns:
        One row per clip, ``[B, ...]``.
    """
    clips: Tensor = x.unflatten(0, (-1, num_frames)).mean(1)  # [B, T, ...] averaged to [B, ...]
    return clips
