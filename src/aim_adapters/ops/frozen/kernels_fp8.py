"""Triton kernels of the row-wise parts that write float8: a program holds whole rows, so their scale is at hand.

A row x is kept as ``values = x * 448 / max|x|``, rounded to float8 (e4m3, whose largest number is 448), and one float32
``scale = max|x| / 448``: x is about values * scale.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aim_adapters.ops.frozen.kernels import _normalize, _tile_of_rows, activate


@triton.jit
def _scales(largest):
    # Return 448 / largest, which the elements are multiplied by, and the inverse, which is kept. Zeros stay zeros.
    largest = tl.maximum(largest, 1e-30)
    return 448.0 / largest, largest / 448.0


@triton.jit
def _write_rows(x, values_ptr, scale_ptr, row, num_rows, offsets, inside):
    # Write whole rows x [BLOCK_ROWS, BLOCK_FEATURES] as values [M, D] and scale [M].
    up, down = _scales(tl.max(tl.abs(x), 1))
    tl.store(scale_ptr + row, down, mask=row < num_rows)
    tl.store(values_ptr + offsets, (x * up[:, None]).to(values_ptr.dtype.element_ty), mask=inside)


@triton.jit
def quantize_kernel(
    x_ptr, values_ptr, scale_ptr, num_rows,
    FEATURES: tl.constexpr, BLOCK_FEATURES: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    # scale[m] = max|x[m, :]| / 448, values[m, :] = x[m, :] / scale[m], of contiguous x and values [M, D].
    # A program computes BLOCK_ROWS whole rows.
    _, offsets, inside = _tile_of_rows(num_rows, FEATURES, BLOCK_FEATURES, BLOCK_ROWS)
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    _write_rows(x, values_ptr, scale_ptr, row, num_rows, offsets, inside)


@triton.jit
def quantize_columns_kernel(
    weight_ptr, values_ptr, scale_ptr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    # scale[k] = max|weight[:, k]| / 448, values[k, :] = weight[:, k] / scale[k]: of contiguous weight [N, K] (ROWS,
    # COLUMNS), transposed, values [K, N] and scale [K]. A program computes BLOCK_COLUMNS whole columns, BLOCK_ROWS rows
    # at a time.
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    largest = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    for start in range(0, ROWS, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        inside = (row < ROWS)[:, None] & (column < COLUMNS)[None, :]
        tile = tl.load(weight_ptr + row[:, None] * COLUMNS + column[None, :], mask=inside, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.max(tl.abs(tile), 0))
    up, down = _scales(largest)
    tl.store(scale_ptr + column, down, mask=column < COLUMNS)
    for start in range(0, ROWS, BLOCK_ROWS):  # a program's columns come out of the cache now
        row = start + tl.arange(0, BLOCK_ROWS)
        inside = (row < ROWS)[:, None] & (column < COLUMNS)[None, :]
        tile = tl.load(weight_ptr + row[:, None] * COLUMNS + column[None, :], mask=inside, other=0.0).to(tl.float32)
        tile = (tile * up[None, :]).to(values_ptr.dtype.element_ty)
        tl.store(values_ptr + column[None, :] * ROWS + row[:, None], tile, mask=inside)


@triton.jit
def layer_norm_kernel(
    x_ptr, other_ptr, weight_ptr, bias_ptr, total_ptr, out_ptr, values_ptr, scale_ptr, num_rows, eps,
    FEATURES: tl.constexpr, BLOCK_FEATURES: tl.constexpr, HAS_OTHER: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_OUT: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    # total = x + other and h = LayerNorm(total), as the kernel of the same name that writes no float8 computes them.
    # h is written as values [M, D] and scale [M], and with HAS_OUT as out [M, D] too; all contiguous.
    # A program computes BLOCK_ROWS whole rows.
    column, offsets, inside = _tile_of_rows(num_rows, FEATURES, BLOCK_FEATURES, BLOCK_ROWS)
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_OTHER:
        x += tl.load(other_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(total_ptr.dtype.element_ty)  # the backward pass normalizes what is stored
        tl.store(total_ptr + offsets, rounded, mask=inside)
        x = rounded.to(tl.float32)
    centered, rstd = _normalize(x, inside, eps, FEATURES)
    h = centered * rstd
    if HAS_WEIGHT:
        h *= tl.load(weight_ptr + column, mask=column < FEATURES, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        h += tl.load(bias_ptr + column, mask=column < FEATURES, other=0.0).to(tl.float32)[None, :]
    if HAS_OUT:
        tl.store(out_ptr + offsets, h.to(out_ptr.dtype.element_ty), mask=inside)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    _write_rows(h, values_ptr, scale_ptr, row, num_rows, offsets, inside)


@triton.jit
def _activated(
    pre_ptr, d_act_ptr,
    START: tl.constexpr, UNITS: tl.constexpr, SIZE: tl.constexpr, ACTIVATION: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    # Return f(pre), or with BACKWARD d_act * f'(pre), of SIZE units of a row [K] from START on; zeros behind its end.
    column = START + tl.arange(0, SIZE)
    pre = tl.load(pre_ptr + column, mask=column < UNITS, other=0.0).to(tl.float32)
    value, slope = activate(pre, ACTIVATION, False)
    if BACKWARD:
        value = tl.load(d_act_ptr + column, mask=column < UNITS, other=0.0).to(tl.float32) * slope
    return value


@triton.jit
def activation_kernel(
    pre_ptr, d_act_ptr, values_ptr, scale_ptr,
    UNITS: tl.constexpr, ACTIVATION: tl.constexpr, BACKWARD: tl.constexpr, FIRST_SIZE: tl.constexpr,
    SECOND_SIZE: tl.constexpr,
):  # fmt: skip
    # y = f(pre), or with BACKWARD y = d_act * f'(pre), written as values [M, K] and scale [M]; all contiguous.
    # A program computes one row in two parts, each a power of two: most MLPs are 3 * 2^n wide, and a third of one part
    # would be idle.
    row = tl.program_id(0).to(tl.int64)
    pre_ptr += row * UNITS
    d_act_ptr += row * UNITS
    values_ptr += row * UNITS
    first = _activated(pre_ptr, d_act_ptr, 0, UNITS, FIRST_SIZE, ACTIVATION, BACKWARD)
    largest = tl.max(tl.abs(first), 0)
    if SECOND_SIZE > 0:
        second = _activated(pre_ptr, d_act_ptr, FIRST_SIZE, UNITS, SECOND_SIZE, ACTIVATION, BACKWARD)
        largest = tl.maximum(largest, tl.max(tl.abs(second), 0))
    up, down = _scales(largest)
    tl.store(scale_ptr + row, down)
    column = tl.arange(0, FIRST_SIZE)
    tl.store(values_ptr + column, (first * up).to(values_ptr.dtype.element_ty))
    if SECOND_SIZE > 0:
        column = FIRST_SIZE + tl.arange(0, SECOND_SIZE)
        tl.store(values_ptr + column, (second * up).to(values_ptr.dtype.element_ty), mask=column < UNITS)
