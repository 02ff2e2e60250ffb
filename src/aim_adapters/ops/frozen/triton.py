"""The row-wise parts of a frozen block by Triton kernels, for float32, bfloat16 and float16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aim_adapters.ops.frozen import kernels, kernels_normed
from aim_adapters.ops.frozen.inner import InnerNorm
from aim_adapters.ops.launch import cdiv, launch, next_power_of_2


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype, norm: str = "layer"
) -> Tensor:
    """Compute `FrozenRows.layer_norm` by a kernel."""
    return _layer_norm(x, None, None, weight, bias, eps, dtype, norm)


def add_layer_norm(
    x: Tensor,
    other: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    norm: str = "layer",
) -> tuple[Tensor, Tensor]:
    """Compute `FrozenRows.add_layer_norm` by a kernel."""
    total = torch.empty_like(x)
    return total, _layer_norm(x, other, total, weight, bias, eps, dtype, norm)


def add(x: Tensor, other: Tensor) -> Tensor:
    """Compute `FrozenRows.add` by a kernel."""
    out = torch.empty_like(x)
    launch(
        kernels.add_kernel,
        cdiv(x.numel(), ELEMENTS),
        x,
        other,
        out,
        x.numel(),
        BLOCK_ELEMENTS=ELEMENTS,
        num_warps=WARPS,
    )
    return out


def _layer_norm(
    x: Tensor,
    other: Tensor | None,
    total: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    norm: str,
) -> Tensor:
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    grid, options = _rows(x)
    launch(
        kernels.layer_norm_kernel, grid,
        x, other, dense(weight), dense(bias), total, out, x.shape[0], eps,
        RMS=norm == "rms", HAS_OTHER=other is not None, HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
        **options,
    )  # fmt: skip
    return out


def layer_norm_backward(
    d_h: Tensor, x: Tensor, weight: Tensor | None, eps: float, d_residual: Tensor | None, norm: str = "layer"
) -> Tensor:
    """Compute `FrozenRows.layer_norm_backward` by a kernel."""
    d_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid, options = _rows(x)
    launch(
        kernels.layer_norm_backward_kernel, grid,
        d_h, x, dense(weight), d_residual, d_x, x.shape[0], eps,
        RMS=norm == "rms", HAS_WEIGHT=weight is not None, HAS_RESIDUAL=d_residual is not None, **options,
    )  # fmt: skip
    return d_x


def activation(pre: Tensor, kind: str, out: Tensor | None = None, value: Tensor | None = None) -> Tensor:
    """Compute `FrozenRows.activation` by a kernel."""
    out = torch.empty_like(pre) if out is None else out
    grid, options = _elements(pre, out, kind, value)
    launch(kernels.activation_kernel, grid, pre, value, out, len(pre), **options)
    return out


def activation_backward(
    d_act: Tensor, pre: Tensor, kind: str, value: Tensor | None = None, d_pre: Tensor | None = None
) -> Tensor:
    """Compute `FrozenRows.activation_backward` by a kernel."""
    grid, options = _elements(pre, d_act, kind, value)
    launch(kernels.activation_backward_kernel, grid, d_act, pre, value, d_pre, len(pre), **options)
    return d_act


def activation_norm(pre: Tensor, kind: str, inner: InnerNorm, out: Tensor, value: Tensor | None = None) -> Tensor:
    """Compute `FrozenRows.activation_norm` by a kernel."""
    grid, options = _normed(pre, out, kind, inner, value)
    weight, bias = dense(inner.weight), dense(inner.bias)
    launch(
        kernels_normed.activation_norm_kernel, grid, pre, value, weight, bias, out, len(pre), inner.eps,
        HAS_BIAS=bias is not None, **options,
    )  # fmt: skip
    return out


def activation_norm_backward(
    d_out: Tensor,
    pre: Tensor,
    kind: str,
    inner: InnerNorm,
    value: Tensor | None = None,
    d_pre: Tensor | None = None,
) -> Tensor:
    """Compute `FrozenRows.activation_norm_backward` by a kernel."""
    grid, options = _normed(pre, d_out, kind, inner, value)
    launch(
        kernels_normed.activation_norm_backward_kernel, grid,
        d_out, pre, value, dense(inner.weight), d_pre, len(pre), inner.eps, **options,
    )  # fmt: skip
    return d_out


def tile(width: int) -> tuple[int, int]:
    """Return the rows and the warps of a program that holds whole rows: 32 elements of them in each thread.

    Up to 1024 elements one warp holds a row, so that it waits for no other.

    Args:
        width: D, up to the next power of two.
    """
    return max(1, 1024 // width), min(max(1, width // 1024), 8)


def dense(vector: Tensor | None) -> Tensor | None:
    """Return a vector whose elements lie side by side, as kernels read them."""
    return None if vector is None else vector.contiguous()


ELEMENTS, WARPS = 2048, 4  # of a program that computes elements


def _rows(x: Tensor) -> tuple[int, dict[str, Any]]:
    rows, warps = tile(width := next_power_of_2(x.shape[1]))
    options = {"FEATURES": x.shape[1], "BLOCK_FEATURES": width, "BLOCK_ROWS": rows, "num_warps": warps}
    return cdiv(x.shape[0], rows), options


def _elements(pre: Tensor, out: Tensor, kind: str, value: Tensor | None) -> tuple[int, dict[str, Any]]:
    width = pre.shape[1]
    # Whole tiles where a power of two divides the width, so that nothing is masked.
    columns = min(max(width & -width, 128), 1024, next_power_of_2(width))
    rows = ELEMENTS // columns
    options = {"STRIDE_PRE_ROW": pre.stride(0), "STRIDE_OUT_ROW": out.stride(0), "UNITS": width, "ACTIVATION": kind}
    options |= {"GATED": value is not None, "EXACT_ERF": pre.dtype.itemsize == 4}
    sizes = {"BLOCK_ROWS": rows, "BLOCK_COLUMNS": columns, "num_warps": WARPS}
    return cdiv(pre.shape[0], rows) * cdiv(width, columns), {**options, **sizes}


def _normed(pre: Tensor, out: Tensor, kind: str, inner: InnerNorm, value: Tensor | None) -> tuple[int, dict[str, Any]]:
    rows, warps = tile(width := next_power_of_2(pre.shape[1]))
    options: dict[str, Any] = {"STRIDE_PRE_ROW": pre.stride(0), "STRIDE_OUT_ROW": out.stride(0), "UNITS": inner.units}
    options |= {"COLUMNS": pre.shape[1], "ACTIVATION": kind, "GATED": value is not None, "RMS": inner.norm == "rms"}
    options |= {"HAS_WEIGHT": inner.weight is not None, "EXACT_ERF": pre.dtype.itemsize == 4}
    # Twice as many warps as for a norm alone: a thread holds several tensors of its elements.
    return cdiv(len(pre), rows), {**options, "BLOCK_UNITS": width, "BLOCK_ROWS": rows, "num_warps": 2 * warps}
