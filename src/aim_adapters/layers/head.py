"""The end of a video model: the average over frames, and the classification layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aim_adapters.layers.linear import zero_linear


def new_classifier(
    dim: int, num_classes: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> nn.Linear:
    """Return a new classification layer, initialized as the reference's: weights N(0, 0.01²), bias 0.

    Args:
        dim: Width D of the features.
        num_classes: Number of classes K.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """
    layer = zero_linear(dim, num_classes, device=device, dtype=dtype)
    nn.init.normal_(layer.weight, std=0.01)
    return layer


def average_frames(x: Tensor, num_frames: int) -> Tensor:
    """Average over the frames of each clip.

    Args:
        x: One row per frame, ``[B*T, ...]``, floating point.
        num_frames: Frames per clip T.

    Returns:
        One row per clip, ``[B, ...]``.
    """
    clips: Tensor = x.unflatten(0, (-1, num_frames)).mean(1)  # [B, T, ...] averaged to [B, ...]
    return clips
