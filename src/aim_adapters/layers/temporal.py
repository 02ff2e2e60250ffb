"""Provide the trained position of a frame in its clip."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def new_temporal_embedding(
    num_frames: int, dim: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> nn.Parameter:
    """Make the temporal embedding ``[1, T, D]``: trained, zero at the start."""
    return nn.Parameter(torch.zeros(1, num_frames, dim, device=device, dtype=dtype))


def add_temporal_embedding(x: Tensor, embedding: Tensor) -> Tensor:
    """Add each frame's embedding to all its tokens, [class] included.

    Args:
        x: Tokens ``[B*T, ..., D]``.
        embedding: ``[1, T, D]``; cast to the dtype of ``x``.

    Returns:
        Tokens ``[B*T, ..., D]`` in the dtype of ``x``.
    """
    clips = x.unflatten(0, (-1, embedding.shape[1]))  # [B, T, ..., D]
    shape = [1, embedding.shape[1]] + [1] * (clips.ndim - 3) + [embedding.shape[2]]
    out: Tensor = (clips + embedding.to(x.dtype).view(shape)).flatten(0, 1)  # [B*T, ..., D]
    return out
