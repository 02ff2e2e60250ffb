"""Compute the hidden layer of an adapter by PyTorch's own operators, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_adapters.ops.bottleneck import padded


def hidden(pre: Tensor, out: Tensor, factor: Tensor | None, rows_per_factor: int, scale: float) -> None:
    """Write ``f * gelu(pre)``, then a column of ``f``, then zeros; f is ``scale * factor`` of the row.

    Args:
        pre: What the down-projection gave ``[M, W]``, floating point, rows any distance apart.
        out: ``[M, P]`` of the same dtype, P more than W, rows any distance apart; overwritten.
        factor: Stochastic depth of each clip ``[clips]``, float32 at least, or None for 1.
        rows_per_factor: Rows of a clip.
        scale: Factor on the branch.
    """
    width = pre.shape[1]
    f = _of_rows(factor, rows_per_factor, scale)
    torch.mul(F.gelu(pre), f, out=out[:, :width])
    out[:, width:] = 0
    out[:, width : width + 1] = f


def hidden_backward(
    d_hidden: Tensor, pre: Tensor, out: Tensor | None, factor: Tensor | None, rows_per_factor: int, scale: float
) -> Tensor:
    """Turn the gradient of ``gelu(pre)`` behind f into that of ``pre``, in place.

    Args:
        d_hidden: Gradient of the branch times the up-projection's weights, without f, ``[M, W]``; overwritten.
        pre: What the down-projection gave ``[M, W]``, same dtype, rows any distance apart.
        out: Where to write what `hidden` writes, or None.
        factor: Stochastic depth of each clip ``[clips]``, float32 at least, or None for 1.
        rows_per_factor: Rows of a clip.
        scale: Factor on the branch.

    Returns:
        The sum of the rows ``[1, W]``, float32 (float64 for float64): what `gradients` makes the down-projection's
        bias' of.
    """
    if factor is not None or scale != 1:
        d_hidden.mul_(_of_rows(factor, rows_per_factor, scale))
    torch.ops.aten.gelu_backward(d_hidden, pre, grad_input=d_hidden)
    if out is not None:
        hidden(pre, out, factor, rows_per_factor, scale)
    return d_hidden.sum(0, keepdim=True, dtype=torch.promote_types(pre.dtype, torch.float32))


def gradients(d_down: Tensor, sums: Tensor, d_up: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of an adapter, from what products and `hidden_backward` gave.

    Args:
        d_down: That of the down-projection's weights ``[W, K]``, but for what they multiply the bias in front of them
            by; which is added.
        sums: What `hidden_backward` returned, ``[n, W]``.
        d_up: That of the up-projection's weights and, behind them, of its bias ``[D, P]``.
        bias: Of the frozen layer that the down-projection is composed with, ``[K]``, any floating dtype; or None.

    Returns:
        Those of the down-projection's weights ``[W, K]``, which is ``d_down``, and bias ``[W]``, float32 (float64 for
        float64); of the up-projection's weights ``[D, W]`` and bias ``[D]``, in the dtype of ``d_up``.
    """
    d_down_b, width = sums.sum(0), sums.shape[1]
    if bias is not None:
        d_down.addr_(d_down_b.to(d_down.dtype), bias.to(d_down.dtype))
    return d_down, d_down_b, d_up[:, :width].contiguous(), d_up[:, width].contiguous()


def widened(weight: Tensor | None, up_weight: Tensor, up_bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a layer's weights with an up-projection's beside them, for the columns that `hidden` writes.

    Args:
        weight: The layer's own ``[D, K]``, any floating dtype; or None for an up-projection alone.
        up_weight: ``[D, W]``, any floating dtype.
        up_bias: ``[D]``, any floating dtype.
        dtype: Dtype of the result.

    Returns:
        ``[D, K + P]``, P columns for the adapter.
    """
    (rows, width), own = up_weight.shape, 0 if weight is None else weight.shape[1]
    out = torch.empty((rows, own + padded(width)), dtype=dtype, device=up_weight.device)
    if weight is not None:
        out[:, :own] = weight
    out[:, own : own + width] = up_weight
    out[:, own + width] = up_bias
    out[:, own + width + 1 :] = 0
    return out


def joined(
    weight: Tensor, bias: Tensor | None, down_weight: Tensor, down_bias: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return a layer with a down-projection's rows below its own.

    Args:
        weight: ``[K, D]``, any floating dtype.
        bias: ``[K]``, any floating dtype, or None for zeros.
        down_weight: ``[W, D]``, any floating dtype.
        down_bias: ``[W]``, any floating dtype.
        dtype: Dtype of the result.

    Returns:
        ``[K + W, D]`` and ``[K + W]``.
    """
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    weights = torch.cat((weight.to(dtype), down_weight.to(dtype)))
    return weights, torch.cat((bias.to(dtype), down_bias.to(dtype)))


def _of_rows(factor: Tensor | None, rows: int, scale: float) -> Tensor | float:
    return scale if factor is None else factor.repeat_interleave(rows).unsqueeze(-1) * scale  # [M, 1]
