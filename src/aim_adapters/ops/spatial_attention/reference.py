"""Spatial attention in plain PyTorch, step by step: what the other implementations are tested against."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def spatial_attention(qkv: Tensor, *, scale: float, bias: Tensor | None, mask: Tensor | None) -> Tensor:
    """Let every token attend to the tokens of its own frame.

    Args:
        qkv: Queries, keys and values ``[F, N, 3, H, d]``; F frames or windows.
        scale: Factor on the scores.
        bias: Added to the scores, ``[H, N, N]``, or None.
        mask: Added to the scores, ``[W, N, N]``; window f takes ``mask[f % W]``; or None.

    Returns:
        ``[F, N, H, d]``.
    """
    q, k, v = qkv.unbind(2)
    scores = torch.einsum("fnhd,fmhd->fhnm", q * scale, k)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if mask is not None:
        windows = rearrange(scores, "(f w) h n m -> f w h n m", w=mask.shape[0])
        scores = rearrange(windows + mask.to(scores.dtype)[:, None], "f w h n m -> (f w) h n m")
    return torch.einsum("fhnm,fmhd->fnhd", scores.softmax(-1), v)
