"""Compute the row-wise parts that write float8 by Triton kernels, for float32, bfloat16 and float16."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from aim_adapters.ops.frozen import kernels_fp8 as kernels
from aim_adapters.ops.frozen.fp8 import DTYPE, Scaled
from aim_adapters.ops.frozen.triton import _rows, dense

_COLUMNS, _COLUMN_ROWS, _COLUMN_WARPS = 8, 4096, 8  # of a program that scales columns; all rows at once, if they fit


def quantize(x: Tensor) -> Scaled:
    """Scale the rows of a matrix, and round them.

    Args:
        x: ``[M, K]``, floating point, K at most 16384.

    Returns:
        ``[M, K]``.
    """
    x, out = x.contiguous(), _like(x)
    grid, options = _rows(x)
    with torch.cuda.device_of(x):
        kernels.quantize_kernel[grid](x, *out, len(x), **options)
    return out


def quantize_columns(weight: Tensor) -> Scaled:
    """Scale the columns of a matrix, and round them.

    Args:
        weight: ``[N, K]``, floating point.

    Returns:
        The matrix transposed, ``[K, N]``.
    """
    weight, out = weight.contiguous(), _like(weight.T)
    rows, columns = weight.shape
    with torch.cuda.device_of(weight):
        kernels.quantize_columns_kernel[(cdiv(columns, _COLUMNS),)](
            weight, *out, N=rows, K=columns, ROWS=min(_COLUMN_ROWS, next_power_of_2(rows)), COLUMNS=_COLUMNS,
            num_warps=_COLUMN_WARPS,
        )  # fmt: skip
    return out


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
        x: Tokens ``[M, D]``, contiguous, D at most 8192.
        other: The branch ``[M, D]``, contiguous, any floating dtype, or None.
        weight: ``[D]``, any floating dtype, or None.
        bias: ``[D]``, any floating dtype, or None.
        eps: Added to the variance.
        dtype: A dtype in which the normalized rows are wanted too, or None.

    Returns:
        The sum ``[M, D]`` in the dtype of ``x``; it normalized ``[M, D]`` in ``dtype``, or None; and that scaled.
    """
    total = x if other is None else torch.empty_like(x)
    out = None if dtype is None else torch.empty(x.shape, dtype=dtype, device=x.device)
    scaled = _like(x)
    grid, options = _rows(x)
    with torch.cuda.device_of(x):
        kernels.layer_norm_kernel[grid](
            x, other, dense(weight), dense(bias), total, out, *scaled, len(x), eps, HAS_OTHER=other is not None,
            HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None, HAS_OUT=out is not None, **options,
        )  # fmt: skip
    return total, out, scaled


def activation(pre: Tensor, kind: str) -> Scaled:
    """Apply an MLP's activation.

    Args:
        pre: Its input ``[M, K]``, contiguous, K at most 16384.
        kind: ``"gelu"``, ``"gelu_tanh"``, ``"quick_gelu"``, ``"relu"`` or ``"silu"``.

    Returns:
        ``[M, K]``.
    """
    return _activation(pre, None, kind)


def activation_backward(d_act: Tensor, pre: Tensor, kind: str) -> Scaled:
    """Multiply a gradient by the activation's derivative.

    Args:
        d_act: Gradient of the activation's output ``[M, K]``, contiguous.
        pre: The activation's input ``[M, K]``, contiguous, same dtype, K at most 16384.
        kind: ``"gelu"``, ``"gelu_tanh"``, ``"quick_gelu"``, ``"relu"`` or ``"silu"``.

    Returns:
        ``[M, K]``.
    """
    return _activation(pre, d_act, kind)


def _activation(pre: Tensor, d_act: Tensor | None, kind: str) -> Scaled:
    out, width = _like(pre), pre.shape[1]
    first = 1 << width.bit_length() - 1  # the largest power of two up to the width
    with torch.cuda.device_of(pre):
        kernels.activation_kernel[(len(pre),)](
            pre, pre if d_act is None else d_act, *out, K=width, KIND=kind, BACKWARD=d_act is not None, FIRST=first,
            REST=next_power_of_2(width - first) if width > first else 0, num_warps=min(max(1, first // 512), 8),
        )  # fmt: skip
    return out


def _like(x: Tensor) -> Scaled:
    """Return memory for a matrix of the same shape."""
    values = torch.empty(x.shape, dtype=DTYPE, device=x.device)
    return Scaled(values, torch.empty((len(x), 1), dtype=torch.float32, device=x.device))
