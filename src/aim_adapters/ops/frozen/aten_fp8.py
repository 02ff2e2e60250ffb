"""Compute the row-wise parts that write float8 by PyTorch's own operators, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from aim_adapters.ops.frozen import aten
from aim_adapters.ops.frozen.fp8 import DTYPE, LARGEST, LEAST, Scaled


def quantize(x: Tensor) -> Scaled:
    """Scale the rows of a matrix, and round them.

    Args:
        x: ``[M, K]``, floating point.

    Returns:
        ``[M, K]``.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    largest = x.abs().amax(-1, keepdim=True).clamp_(min=LEAST)  # [M, 1]
    return Scaled((x * (LARGEST / largest)).to(DTYPE), (largest / LARGEST).float())


def quantize_columns(weight: Tensor) -> Scaled:
    """Scale the columns of a matrix, and round them.

    Args:
        weight: ``[N, K]``, floating point.

    Returns:
        The matrix transposed, ``[K, N]``.
    """
    return quantize(weight.T)


def layer_norm(
    x: Tensor,
    other: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None, Scaled]:
    """Add a branch to the residual stream, if there is one, and normalize the rows of the sum.

    Args:
        x: Tokens ``[M, D]``, floating point.
        other: The branch ``[M, D]``, floating point, or None.
        weight: ``[D]``, any floating dtype, or None.
        bias: ``[D]``, any floating dtype, or None.
        eps: Added to the variance.
        dtype: A dtype in which the normalized rows are wanted too, or None.

    Returns:
        The sum ``[M, D]`` in the dtype of ``x``; it normalized ``[M, D]`` in ``dtype``, or None; and that scaled.
    """
    total = x if other is None else aten.add(x, other)
    h = aten.layer_norm(total, weight, bias, eps, torch.promote_types(x.dtype, torch.float32))
    return total, None if dtype is None else h.to(dtype), quantize(h)


def activation(pre: Tensor, kind: str) -> Scaled:
    """Apply an MLP's activation.

    Args:
        pre: Its input ``[M, K]``, floating point.
        kind: ``"gelu"``, ``"gelu_tanh"``, ``"quick_gelu"``, ``"relu"`` or ``"silu"``.

    Returns:
        ``[M, K]``.
    """
    return quantize(aten.activation(pre.to(torch.promote_types(pre.dtype, torch.float32)), kind))


def activation_backward(d_act: Tensor, pre: Tensor, kind: str) -> Scaled:
    """Multiply a gradient by the activation's derivative.

    Args:
        d_act: Gradient of the activation's output ``[M, K]``, floating point.
        pre: The activation's input ``[M, K]``, same dtype.
        kind: ``"gelu"``, ``"gelu_tanh"``, ``"quick_gelu"``, ``"relu"`` or ``"silu"``.

    Returns:
        ``[M, K]``.
    """
    wide = torch.promote_types(pre.dtype, torch.float32)
    return quantize(aten.activation_backward(d_act.to(wide, copy=True), pre.to(wide), kind))
