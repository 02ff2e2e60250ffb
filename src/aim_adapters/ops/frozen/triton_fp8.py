"""The row-wise parts that write float8 by Triton kernels, for float32, bfloat16 and float16."""

from __future__ import annotations

import torch
from torch import Tensor

from aim_adapters.ops.frozen import kernels_fp8 as kernels
from aim_adapters.ops.frozen.scaled import DTYPE, Scaled
from aim_adapters.ops.frozen.triton import _rows, dense
from aim_adapters.ops.launch import cdiv, launch, next_power_of_2

_COLUMNS, _COLUMN_ROWS, _COLUMN_WARPS = 8, 4096, 8  # of a program that scales columns; all rows at once, if they fit


def quantize(x: Tensor) -> Scaled:
    """Compute `ScaledRows.quantize` by a kernel."""
    x, out = x.contiguous(), _like(x)
    grid, options = _rows(x)
    launch(kernels.quantize_kernel, grid, x, *out, len(x), **options)
    return out


def quantize_columns(weight: Tensor) -> Scaled:
    """Compute `ScaledRows.quantize_columns` by a kernel."""
    weight, out = weight.contiguous(), _like(weight.T)
    rows, columns = weight.shape
    launch(
        kernels.quantize_columns_kernel, cdiv(columns, _COLUMNS),
        weight, *out, ROWS=rows, COLUMNS=columns, BLOCK_ROWS=min(_COLUMN_ROWS, next_power_of_2(rows)),
        BLOCK_COLUMNS=_COLUMNS, num_warps=_COLUMN_WARPS,
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
    """Compute `ScaledRows.layer_norm` by a kernel."""
    total = x if other is None else torch.empty_like(x)
    out = None if dtype is None else torch.empty(x.shape, dtype=dtype, device=x.device)
    scaled = _like(x)
    grid, options = _rows(x)
    launch(
        kernels.layer_norm_kernel, grid,
        x, other, dense(weight), dense(bias), total, out, *scaled, len(x), eps, HAS_OTHER=other is not None,
        HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None, HAS_OUT=out is not None, **options,
    )  # fmt: skip
    return total, out, scaled


def activation(pre: Tensor, kind: str) -> Scaled:
    """Compute `ScaledRows.activation` by a kernel."""
    return _activation(pre, None, kind)


def activation_backward(d_act: Tensor, pre: Tensor, kind: str) -> Scaled:
    """Compute `ScaledRows.activation_backward` by a kernel."""
    return _activation(pre, d_act, kind)


def _activation(pre: Tensor, d_act: Tensor | None, kind: str) -> Scaled:
    out, width = _like(pre), pre.shape[1]
    first = 1 << width.bit_length() - 1  # the largest power of two up to the width
    launch(
        kernels.activation_kernel, len(pre),
        pre, pre if d_act is None else d_act, *out, UNITS=width, ACTIVATION=kind, BACKWARD=d_act is not None,
        FIRST_SIZE=first, SECOND_SIZE=next_power_of_2(width - first) if width > first else 0,
        num_warps=min(max(1, first // 512), 8),
    )  # fmt: skip
    return out


def _like(x: Tensor) -> Scaled:
    """Return memory for a matrix of the same shape."""
    values = torch.empty(x.shape, dtype=DTYPE, device=x.device)
    return Scaled(values, torch.empty((len(x), 1), dtype=torch.float32, device=x.device))
