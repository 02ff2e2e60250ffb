"""Run the parts of an adapter as Triton kernels: memory-bound products around a narrow hidden layer.

A width is covered by two tiles, both powers of two, FIRST and REST: 192 by 128 and 64. REST may be 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aim_adapters.ops.frozen.kernels import activate


@triton.jit
def _factor(factor, row, inside, rows_per_factor, scale, HAS_FACTOR: tl.constexpr):
    """Return what the branch of each row is multiplied by ``[ROWS, 1]``, or the same for all."""
    f = scale
    if HAS_FACTOR:
        f = (tl.load(factor + row // rows_per_factor, mask=inside, other=0.0) * scale)[:, None]
    return f


@triton.jit
def _load(pointer, row, column, rows, columns, stride):
    """Load a tile of a matrix; beyond its edges are zeros."""
    offsets = row.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(pointer + offsets, mask=(row < rows)[:, None] & (column < columns)[None, :], other=0.0)


@triton.jit
def _store(pointer, tile, row, column, rows, columns, stride):
    offsets = row.to(tl.int64)[:, None] * stride + column[None, :]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(pointer + offsets, tile.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _hidden(pre, row, unit, rows, W: tl.constexpr, EXACT: tl.constexpr):
    tile = _load(pre, row, unit, rows, W, W)
    value, _ = activate(tile.to(tl.float32), "gelu", EXACT)
    return value.to(tile.dtype)


@triton.jit
def up_add_kernel(
    pre, up_weight, up_bias, residual, other, factor, out, rows, rows_per_factor, scale,
    D: tl.constexpr, W: tl.constexpr, UNITS: tl.constexpr, PIECES: tl.constexpr, HAS_OTHER: tl.constexpr,
    HAS_FACTOR: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    groups = tl.cdiv(D, COLUMNS * STEPS)  # fastest: they read the same rows of pre
    row = tl.program_id(0) // groups * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(0) % groups * (COLUMNS * STEPS)
    unit = tl.arange(0, UNITS)
    hidden_0 = _hidden(pre, row, unit, rows, W, EXACT)
    if PIECES > 1:
        hidden_1 = _hidden(pre, row, UNITS + unit, rows, W, EXACT)
    if PIECES > 2:
        hidden_2 = _hidden(pre, row, 2 * UNITS + unit, rows, W, EXACT)
    if PIECES > 3:
        hidden_3 = _hidden(pre, row, 3 * UNITS + unit, rows, W, EXACT)
    f = _factor(factor, row, row < rows, rows_per_factor, scale, HAS_FACTOR)
    for step in range(STEPS):
        column = first + step * COLUMNS + tl.arange(0, COLUMNS)
        tile = _load(residual, row, column, rows, D, D).to(tl.float32)  # before the product, which hides the wait
        if HAS_OTHER:
            tile += _load(other, row, column, rows, D, D).to(tl.float32)
        branch = tl.dot(hidden_0, tl.trans(_load(up_weight, column, unit, D, W, W)), input_precision=PRECISION)
        if PIECES > 1:
            weight = tl.trans(_load(up_weight, column, UNITS + unit, D, W, W))
            branch = tl.dot(hidden_1, weight, branch, input_precision=PRECISION)
        if PIECES > 2:
            weight = tl.trans(_load(up_weight, column, 2 * UNITS + unit, D, W, W))
            branch = tl.dot(hidden_2, weight, branch, input_precision=PRECISION)
        if PIECES > 3:
            weight = tl.trans(_load(up_weight, column, 3 * UNITS + unit, D, W, W))
            branch = tl.dot(hidden_3, weight, branch, input_precision=PRECISION)
        branch += tl.load(up_bias + column, mask=column < D, other=0.0).to(tl.float32)[None, :]
        _store(out, tile + branch * f, row, column, rows, D, D)


@triton.jit
def _finish(gradient, pre, f, d_pre, hidden, sums, row, unit, rows, W: tl.constexpr, EXACT: tl.constexpr):
    """Pass a gradient through the GELU, and store it, the hidden layer, and the gradient's sum over rows."""
    value, slope = activate(_load(pre, row, unit, rows, W, W).to(tl.float32), "gelu", EXACT)
    gradient = gradient * f * slope
    _store(d_pre, gradient, row, unit, rows, W, W)
    _store(hidden, value * f, row, unit, rows, W, W)
    tl.store(sums + unit, tl.sum(gradient, 0), mask=unit < W)


@triton.jit
def down_backward_kernel(
    d_out, up_weight, pre, factor, d_pre, hidden, sums, rows, rows_per_factor, scale,
    D: tl.constexpr, W: tl.constexpr, UNITS: tl.constexpr, PIECES: tl.constexpr, PARTS: tl.constexpr,
    HAS_FACTOR: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) // PARTS
    part = tl.program_id(0) % PARTS  # fastest: they read the same rows of d_out
    row = tile * ROWS + tl.arange(0, ROWS)
    unit = part * (PIECES * UNITS) + tl.arange(0, UNITS)
    product_0 = tl.zeros((ROWS, UNITS), tl.float32)
    if PIECES > 1:
        product_1 = tl.zeros((ROWS, UNITS), tl.float32)
    if PIECES > 2:
        product_2 = tl.zeros((ROWS, UNITS), tl.float32)
    if PIECES > 3:
        product_3 = tl.zeros((ROWS, UNITS), tl.float32)
    f = _factor(factor, row, row < rows, rows_per_factor, scale, HAS_FACTOR)
    sums += tile.to(tl.int64) * (D + W)
    summed = tl.where(part == 0, D, 0)  # by one program for all parts
    for start in range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        gradient = _load(d_out, row, column, rows, D, D)
        low = gradient.to(up_weight.dtype.element_ty)
        product_0 = tl.dot(low, _load(up_weight, column, unit, D, W, W), product_0, input_precision=PRECISION)
        if PIECES > 1:
            weight = _load(up_weight, column, UNITS + unit, D, W, W)
            product_1 = tl.dot(low, weight, product_1, input_precision=PRECISION)
        if PIECES > 2:
            weight = _load(up_weight, column, 2 * UNITS + unit, D, W, W)
            product_2 = tl.dot(low, weight, product_2, input_precision=PRECISION)
        if PIECES > 3:
            weight = _load(up_weight, column, 3 * UNITS + unit, D, W, W)
            product_3 = tl.dot(low, weight, product_3, input_precision=PRECISION)
        tl.store(sums + column, tl.sum(gradient.to(tl.float32) * f, 0), mask=column < summed)
    sums += D
    _finish(product_0, pre, f, d_pre, hidden, sums, row, unit, rows, W, EXACT)
    if PIECES > 1:
        _finish(product_1, pre, f, d_pre, hidden, sums, row, UNITS + unit, rows, W, EXACT)
    if PIECES > 2:
        _finish(product_2, pre, f, d_pre, hidden, sums, row, 2 * UNITS + unit, rows, W, EXACT)
    if PIECES > 3:
        _finish(product_3, pre, f, d_pre, hidden, sums, row, 3 * UNITS + unit, rows, W, EXACT)


@triton.jit
def add_tiles_kernel(
    sums, d_up_bias, d_down_bias, tiles, D: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, tiles, ROWS):
        total += _load(sums, start + tl.arange(0, ROWS), column, tiles, D + W, D + W)
    total = tl.sum(total, 0)
    tl.store(d_up_bias + column, total, mask=column < D)
    tl.store(d_down_bias + column - D, total, mask=(column >= D) & (column < D + W))
