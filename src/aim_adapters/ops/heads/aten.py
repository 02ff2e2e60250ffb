"""Queries and keys, normalized and rotated by PyTorch's own operators, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from aim_adapters.ops.heads.api import Heads


def prepare(qkv: Tensor, heads: Heads) -> Tensor:
    """Compute `HeadRows.prepare` by PyTorch's operators."""
    out = qkv.clone() if heads.norm else qkv
    for part, weight, bias in _parts(out, heads):
        x = _wide(part)
        if heads.norm:
            normalized, _ = _normalized(x, heads)
            x = normalized if weight is None else normalized * weight.to(x.dtype)
            x = x if bias is None else x + bias.to(x.dtype)
        if heads.sin is not None and heads.cos is not None:
            sin, cos = (_of_tokens(each, x) for each in (heads.sin, heads.cos))
            patches = x[:, x.shape[1] - heads.rotated :]
            patches = patches * cos + _turned(patches, heads.rotary) * sin
            x = torch.cat((x[:, : x.shape[1] - heads.rotated], patches), 1)
        part.copy_(x)
    return out


def prepare_backward(d_qkv: Tensor, qkv: Tensor, heads: Heads) -> None:
    """Compute `HeadRows.prepare_backward` by PyTorch's operators."""
    raw = [_wide(qkv[:, :, index]) for index in range(2)]
    for (part, weight, _), x in zip(_parts(d_qkv, heads), raw, strict=True):
        g = _wide(part)
        if heads.sin is not None and heads.cos is not None:
            sin, cos = (_of_tokens(each, g) for each in (heads.sin, heads.cos))
            patches = g[:, g.shape[1] - heads.rotated :]
            patches = patches * cos - _turned(patches * sin, heads.rotary)  # the turn's transpose is its negative
            g = torch.cat((g[:, : g.shape[1] - heads.rotated], patches), 1)
        if heads.norm:
            normalized, rstd = _normalized(x, heads)
            g = g if weight is None else g * weight.to(g.dtype)
            centered = g - g.mean(-1, keepdim=True) if heads.norm == "layer" else g
            g = (centered - normalized * (g * normalized).mean(-1, keepdim=True)) * rstd
        part.copy_(g)


def _parts(qkv: Tensor, heads: Heads) -> list[tuple[Tensor, Tensor | None, Tensor | None]]:
    """Return queries and keys ``[F, N, H, d]``, each with weight and bias of its norm."""
    return [(qkv[:, :, 0], heads.q_weight, heads.q_bias), (qkv[:, :, 1], heads.k_weight, heads.k_bias)]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normalized(x: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
    """Return rows with mean 0 (of ``"layer"``) and mean square 1, and what they were multiplied by."""
    centered = x - x.mean(-1, keepdim=True) if heads.norm == "layer" else x
    rstd = (centered.square().mean(-1, keepdim=True) + heads.eps).rsqrt()
    return centered * rstd, rstd


def _of_tokens(angles: Tensor, x: Tensor) -> Tensor:
    """Return ``[N', d]`` or ``[H, N', d]`` as it is multiplied by ``[F, N', H, d]``."""
    return (angles.unsqueeze(-2) if angles.ndim == 2 else angles.transpose(0, 1)).to(x.dtype)


def _turned(x: Tensor, rotary: str) -> Tensor:
    """Return x with each pair of features (a, b) as (-b, a)."""
    if rotary == "interleaved":
        return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)
