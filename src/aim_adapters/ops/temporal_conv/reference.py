"""Convolution over frames in plain PyTorch: what the kernels are tested against, and what runs without them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def temporal_conv_gelu(h: Tensor, weight: Tensor, bias: Tensor, *, num_frames: int) -> Tensor:
    """Add up the frames, shifted and weighted, and apply GELU.

    Args:
        h: ``[B*T, ..., W]``.
        weight: ``[W, K]``, K odd.
        bias: ``[W]``.
        num_frames: T.

    Returns:
        ``[B*T, ..., W]``.
    """
    clips = h.unflatten(0, (-1, num_frames))  # [B, T, ..., W]
    weight, bias, middle = weight.to(h.dtype), bias.to(h.dtype), weight.shape[1] // 2
    out = torch.addcmul(bias, clips, weight[:, middle])
    for distance in range(1, min(middle, num_frames - 1) + 1):  # frames beyond the ends of a clip are zeros
        out[:, distance:].addcmul_(clips[:, :-distance], weight[:, middle - distance])
        out[:, :-distance].addcmul_(clips[:, distance:], weight[:, middle + distance])
    return F.gelu(out).reshape(h.shape)  # [B*T, ..., W]
