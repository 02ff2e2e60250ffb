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
    weight, bias = weight.to(h.dtype), bias.to(h.dtype)
    middle = weight.shape[1] // 2
    reach = min(middle, num_frames - 1)  # taps beyond it never meet a frame
    # Frames beyond the ends of a clip are zeros; nothing is written in place, which function transforms cannot follow.
    padded = F.pad(clips, [0, 0] * (clips.ndim - 2) + [reach, reach])  # [B, T+2*reach, ..., W]
    out = bias
    for shift in range(-reach, reach + 1):
        start = reach + shift
        out = torch.addcmul(out, padded[:, start : start + num_frames], weight[:, middle + shift])  # [B, T, ..., W]
    return F.gelu(out).reshape(h.shape)  # [B*T, ..., W]
