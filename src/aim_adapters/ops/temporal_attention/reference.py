"""Temporal attention in plain PyTorch, step by step: what the other implementations are tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_weights(q: Tensor, k: Tensor, *, num_frames: int, scale: float, bias: Tensor | None) -> Tensor:
    """Return ``softmax(scale · q·kᵀ + bias)`` of every token over its clip's frames.

    Args:
        q: Queries ``[B*T, N, H, d]``.
        k: Keys ``[B*T, N, G, d]``, G key/value heads, H a multiple of G.
        num_frames: T.
        scale: Factor on the scores.
        bias: Added to the scores, ``[H, T, T]``, or None.

    Returns:
        Weights ``[B, N, H, T, T]``, rows (query frames) summing to 1.
    """
    q = q.unflatten(0, (-1, num_frames))  # [B, T, N, H, d]
    k = _of_query_heads(k, num_frames, q.shape[3])  # [B, T, N, H, d]
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
    v = _of_query_heads(v, num_frames, q.shape[2])  # [B, T, N, H, d]
    out = torch.einsum("bnhst,btnhd->bsnhd", weights, v)
    return out.flatten(0, 1)  # [B*T, N, H, d]


def _of_query_heads(x: Tensor, num_frames: int, heads: int) -> Tensor:
    """Cut keys or values into clips, and repeat each head for the query heads that it serves."""
    clips = x.unflatten(0, (-1, num_frames))  # [B, T, N, G, d]
    out: Tensor = clips if x.shape[2] == heads else clips.repeat_interleave(heads // x.shape[2], dim=3)
    return out
