"""The oracle: temporal attention in plain PyTorch, step by step."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_weights(q: Tensor, k: Tensor, *, num_frames: int, scale: float, bias: Tensor | None) -> Tensor:
    """Return the softmax weights of every token over its clip's frames.

    Args:
        q: Queries ``[B*T, N, H, d]``.
        k: Keys ``[B*T, N, G, d]``, G key/value heads, H a multiple of G.
        num_frames: T.
        scale: Factor on the scores.
        bias: Added to the scores, ``[H, T, T]``, or None.

    Returns:
        Weights ``[B, N, H, T, T]``, rows (query frames) summing to 1.
    """
    group = q.shape[2] // k.shape[2]
    q = q.unflatten(0, (-1, num_frames))  # [B, T, N, H, d]
    k = k.unflatten(0, (-1, num_frames)).repeat_interleave(group, dim=3)  # [B, T, N, H, d]
    scores = torch.einsum("bsnhd,btnhd->bnhst", q * scale, k)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    return scores.softmax(-1)


def temporal_attention(
    q: Tensor, k: Tensor, v: Tensor, *, num_frames: int, scale: float, bias: Tensor | None
) -> Tensor:
    """Return `attention_weights` applied to the values.

    Args:
        q: Queries ``[B*T, N, H, d]``.
        k: Keys ``[B*T, N, G, d]``.
        v: Values ``[B*T, N, G, d]``.
        num_frames: T.
        scale: Factor on the scores.
        bias: Added to the scores, ``[H, T, T]``, or None.

    Returns:
        ``[B*T, N, H, d]``.
    """
    weights = attention_weights(q, k, num_frames=num_frames, scale=scale, bias=bias)
    group = q.shape[2] // v.shape[2]
    v = v.unflatten(0, (-1, num_frames)).repeat_interleave(group, dim=3)  # [B, T, N, H, d]
    return torch.einsum("bnhst,btnhd->bsnhd", weights, v).flatten(0, 1)  # [B*T, N, H, d]
