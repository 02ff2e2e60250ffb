"""The row-wise parts that write float8 by PyTorch's own operators, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from aim_adapters.ops.frozen import aten
from aim_adapters.ops.frozen.scaled import DTYPE, LARGEST, LEAST, Scaled


def quantize(x: Tensor) -> Scaled:
    """Compute `ScaledRows.quantize` by PyTorch's operators."""
    x = x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    largest = x.abs().amax(-1, keepdim=True).clamp_(min=LEAST)  # [M, 1]
    return Scaled((x * (LARGEST / largest)).to(DTYPE), (largest / LARGEST).float())


def quantize_columns(weight: Tensor) -> Scaled:
    """Compute `ScaledRows.quantize_columns` by PyTorch's operators."""
    return quantize(weight.T)


def layer_norm(
    x: Tensor,
    other: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None, Scaled]:
    """Compute `ScaledRows.layer_norm` by PyTorch's operators."""
    total = x if other is None else aten.add(x, other)
    h = aten.layer_norm(total, weight, bias, eps, torch.promote_types(x.dtype, torch.float32))
    return total, None if dtype is None else h.to(dtype), quantize(h)


def activation(pre: Tensor, kind: str) -> Scaled:
    """Compute `ScaledRows.activation` by PyTorch's operators."""
    return quantize(aten.activation(pre.to(torch.promote_types(pre.dtype, torch.float32)), kind))


def activation_backward(d_act: Tensor, pre: Tensor, kind: str) -> Scaled:
    """Compute `ScaledRows.activation_backward` by PyTorch's operators."""
    wide = torch.promote_types(pre.dtype, torch.float32)
    return quantize(aten.activation_backward(d_act.to(wide, copy=True), pre.to(wide), kind))
