"""Spatial attention in plain PyTorch, step by step: what the other implementations are tested against."""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor


def attention_weights(q: Tensor, k: Tensor, *, scale: float, bias: Tensor | None) -> Tensor:
    """Return ``softmax(scale · q·kᵀ + bias)``.

    Args:
        q: Queries ``[F, N, H, d]``; F frames or windows.
        k: Keys ``[F, M, H, d]``.
        scale: Factor on the scores.
        bias: Added to the scores, in any shape that broadcasts to ``[F, H, N, M]``, or None.

    Returns:
        ``[F, H, N, M]``; rows sum to 1.
    """
    scores = torch.einsum("fnhd,fmhd->fhnm", q * scale, k)
    return (scores if bias is None else scores + bias.to(scores.dtype)).softmax(-1)


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
    added = bias
    if mask is not None:
        windows = repeat(mask, "w n m -> (f w) 1 n m", f=len(qkv) // len(mask))
        added = windows if bias is None else windows + bias
    return torch.einsum("fhnm,fmhd->fnhd", attention_weights(q, k, scale=scale, bias=added), v)
