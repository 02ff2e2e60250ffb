"""The hidden layer of an adapter by PyTorch's own operators, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_adapters.ops.bottleneck.width import padded


def hidden(pre: Tensor, out: Tensor, factor: Tensor | None, rows_per_factor: int, scale: float) -> None:
    """Compute `BottleneckRows.hidden` by PyTorch's operators."""
    width = pre.shape[1]
    f = _of_rows(factor, rows_per_factor, scale)
    torch.mul(F.gelu(pre), f, out=out[:, :width])
    out[:, width:] = 0
    out[:, width : width + 1] = f


def hidden_backward(
    d_hidden: Tensor, pre: Tensor, out: Tensor | None, factor: Tensor | None, rows_per_factor: int, scale: float
) -> Tensor:
    """Compute `BottleneckRows.hidden_backward` by PyTorch's operators."""
    if factor is not None or scale != 1:
        d_hidden.mul_(_of_rows(factor, rows_per_factor, scale))
    torch.ops.aten.gelu_backward(d_hidden, pre, grad_input=d_hidden)
    if out is not None:
        hidden(pre, out, factor, rows_per_factor, scale)
    return d_hidden.sum(0, keepdim=True, dtype=torch.promote_types(pre.dtype, torch.float32))


def gradients(d_down: Tensor, sums: Tensor, d_up: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `BottleneckRows.gradients` by PyTorch's operators."""
    d_down_b, width = sums.sum(0), sums.shape[1]
    if bias is not None:
        d_down.addr_(d_down_b.to(d_down.dtype), bias.to(d_down.dtype))
    return d_down, d_down_b, d_up[:, :width].contiguous(), d_up[:, width].contiguous()


def widened(weight: Tensor | None, up_weight: Tensor, up_bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute `BottleneckRows.widened` by PyTorch's operators."""
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
    """Compute `BottleneckRows.joined` by PyTorch's operators."""
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    weights = torch.cat((weight.to(dtype), down_weight.to(dtype)))
    return weights, torch.cat((bias.to(dtype), down_bias.to(dtype)))


def _of_rows(factor: Tensor | None, rows: int, scale: float) -> Tensor | float:
    return scale if factor is None else factor.repeat_interleave(rows).unsqueeze(-1) * scale  # [M, 1]
