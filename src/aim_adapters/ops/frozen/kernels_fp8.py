"""Run the row-wise parts that write float8 as Triton kernels: a program holds whole rows, so their scale is at hand."""

from __future__ import annotations

import triton
import triton.language as tl

from aim_adapters.ops.frozen.kernels import _normalize, _place, activate


@triton.jit
def _scales(largest):
    """Return what a row is multiplied by so that its largest element is float8's largest, 448; and the inverse."""
    largest = tl.maximum(largest, 1e-30)
    return 448.0 / largest, largest / 448.0


@triton.jit
def _write_rows(tile, values, scale, row, rows, offsets, inside):
    up, down = _scales(tl.max(tl.abs(tile), 1))
    tl.store(scale + row, down, mask=row < rows)
    tl.store(values + offsets, (tile * up[:, None]).to(values.dtype.element_ty), mask=inside)


@triton.jit
def quantize_kernel(x, values, scale, rows, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    _, offsets, inside = _place(rows, D, WIDTH, ROWS)
    tile = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    _write_rows(tile, values, scale, row, rows, offsets, inside)


@triton.jit
def quantize_columns_kernel(
    weight, values, scale, N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    largest = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, N, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < N)[:, None] & (column < K)[None, :]
        tile = tl.load(weight + row[:, None] * K + column[None, :], mask=inside, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.max(tl.abs(tile), 0))
    up, down = _scales(largest)
    tl.store(scale + column, down, mask=column < K)
    for start in range(0, N, ROWS):  # a program's columns come out of the cache now
        row = start + tl.arange(0, ROWS)
        inside = (row < N)[:, None] & (column < K)[None, :]
        tile = tl.load(weight + row[:, None] * K + column[None, :], mask=inside, other=0.0).to(tl.float32)
        tile = (tile * up[None, :]).to(values.dtype.element_ty)
        tl.store(values + column[None, :] * N + row[:, None], tile, mask=inside)


@triton.jit
def layer_norm_kernel(
    x, other, weight, bias, total, out, values, scale, rows, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, HAS_OTHER: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_OUT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    column, offsets, inside = _place(rows, D, WIDTH, ROWS)
    tile = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_OTHER:
        tile += tl.load(other + offsets, mask=inside, other=0.0).to(tl.float32)
        rounded = tile.to(total.dtype.element_ty)  # the backward pass normalizes what is stored
        tl.store(total + offsets, rounded, mask=inside)
        tile = rounded.to(tl.float32)
    centered, rstd = _normalize(tile, inside, eps, D)
    h = centered * rstd
    if HAS_WEIGHT:
        h *= tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        h += tl.load(bias + column, mask=column < D, other=0.0).to(tl.float32)[None, :]
    if HAS_OUT:
        tl.store(out + offsets, h.to(out.dtype.element_ty), mask=inside)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    _write_rows(h, values, scale, row, rows, offsets, inside)


@triton.jit
def _activated(
    pre, d_act, START: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, KIND: tl.constexpr, BACKWARD: tl.constexpr
):  # fmt: skip
    """Return a part of a row of activations, or of gradients; zeros behind its end."""
    column = START + tl.arange(0, WIDTH)
    value, slope = activate(tl.load(pre + column, mask=column < K, other=0.0).to(tl.float32), KIND, False)
    if BACKWARD:
        value = tl.load(d_act + column, mask=column < K, other=0.0).to(tl.float32) * slope
    return value


@triton.jit
def activation_kernel(
    pre, d_act, values, scale,
    K: tl.constexpr, KIND: tl.constexpr, BACKWARD: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    # A row in two parts, each a power of two: most MLPs are 3 * 2^n wide, and a third of one part would be idle.
    row = tl.program_id(0).to(tl.int64)
    pre += row * K
    d_act += row * K
    values += row * K
    one = _activated(pre, d_act, 0, K, FIRST, KIND, BACKWARD)
    largest = tl.max(tl.abs(one), 0)
    if REST > 0:
        two = _activated(pre, d_act, FIRST, K, REST, KIND, BACKWARD)
        largest = tl.maximum(largest, tl.max(tl.abs(two), 0))
    up, down = _scales(largest)
    tl.store(scale + row, down)
    column = tl.arange(0, FIRST)
    tl.store(values + column, (one * up).to(values.dtype.element_ty))
    if REST > 0:
        column = FIRST + tl.arange(0, REST)
        tl.store(values + column, (two * up).to(values.dtype.element_ty), mask=column < K)
