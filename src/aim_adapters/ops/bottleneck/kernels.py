"""Run the hidden layer of an adapter as Triton kernels, each reading and writing every element once."""

from __future__ import annotations

import triton
import triton.language as tl

from aim_adapters.ops.frozen.kernels import activate


@triton.jit
def _factor(factor, row, rows, rows_per_factor, scale, HAS_FACTOR: tl.constexpr):
    """Return what the branch of each row is multiplied by."""
    f = tl.zeros(row.shape, tl.float32) + scale
    if HAS_FACTOR:
        f *= tl.load(factor + row // rows_per_factor, mask=row < rows, other=0.0).to(tl.float32)
    return f[:, None]


@triton.jit
def _write_hidden(
    value, f, out, row, column, rows, OUT: tl.constexpr, W: tl.constexpr, P: tl.constexpr, REST: tl.constexpr
):  # fmt: skip
    into = out + row.to(tl.int64)[:, None] * OUT
    inside = (row < rows)[:, None]
    tl.store(into + column[None, :], (value * f).to(out.dtype.element_ty), mask=inside & (column < W)[None, :])
    # Apart: a power of two that holds all P columns would be mostly empty.
    rest = tl.arange(0, REST)[None, :]
    tile = tl.where(rest == 0, f, 0.0).to(out.dtype.element_ty)
    tl.store(into + W + rest, tile, mask=inside & (rest < P - W))


@triton.jit
def hidden_kernel(
    pre, out, factor, rows, rows_per_factor, scale,
    PRE: tl.constexpr, OUT: tl.constexpr, W: tl.constexpr, P: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr,
    HAS_FACTOR: tl.constexpr, EXACT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (column < W)[None, :]
    tile = tl.load(pre + row.to(tl.int64)[:, None] * PRE + column[None, :], mask=inside, other=0.0)
    value, _ = activate(tile.to(tl.float32), "gelu", EXACT)
    f = _factor(factor, row, rows, rows_per_factor, scale, HAS_FACTOR)
    _write_hidden(value, f, out, row, column, rows, OUT, W, P, REST)


@triton.jit
def hidden_backward_kernel(
    d_hidden, pre, out, sums, factor, rows, rows_per_factor, scale,
    GRADIENT: tl.constexpr, PRE: tl.constexpr, OUT: tl.constexpr, W: tl.constexpr, P: tl.constexpr,
    WIDTH: tl.constexpr, REST: tl.constexpr, HAS_OUT: tl.constexpr, HAS_FACTOR: tl.constexpr, EXACT: tl.constexpr,
    ROWS: tl.constexpr, TILES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, WIDTH)
    total = tl.zeros((ROWS, WIDTH), tl.float32)  # rows are added up at the end, as warps have to meet for it
    for index in tl.range(0, TILES, num_stages=STAGES):
        row = (tl.program_id(0) * TILES + index) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < W)[None, :]
        tile = tl.load(pre + row.to(tl.int64)[:, None] * PRE + column[None, :], mask=inside, other=0.0)
        offsets = row.to(tl.int64)[:, None] * GRADIENT + column[None, :]
        gradient = tl.load(d_hidden + offsets, mask=inside, other=0.0).to(tl.float32)
        value, slope = activate(tile.to(tl.float32), "gelu", EXACT)
        f = _factor(factor, row, rows, rows_per_factor, scale, HAS_FACTOR)
        gradient *= slope * f
        total += gradient
        tl.store(d_hidden + offsets, gradient.to(d_hidden.dtype.element_ty), mask=inside)
        if HAS_OUT:
            _write_hidden(value, f, out, row, column, rows, OUT, W, P, REST)
    tl.store(sums + tl.program_id(0).to(tl.int64) * W + column, tl.sum(total, 0), mask=column < W)


@triton.jit
def gradients_kernel(
    d_down, sums, d_up, bias, d_down_bias, d_up_weight, d_up_bias, parts,
    W: tl.constexpr, P: tl.constexpr, D: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr,
    UNITS: tl.constexpr, PARTS: tl.constexpr, STEPS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    groups: tl.constexpr = (W + UNITS - 1) // UNITS
    program = tl.program_id(0)
    if program < groups:
        unit = program * UNITS + tl.arange(0, UNITS)
        total = tl.zeros((UNITS,), tl.float32)
        for step in range(STEPS):
            part = step * PARTS + tl.arange(0, PARTS)
            inside = (part < parts)[:, None] & (unit < W)[None, :]
            total += tl.sum(tl.load(sums + part.to(tl.int64)[:, None] * W + unit[None, :], mask=inside, other=0.0), 0)
        tl.store(d_down_bias + unit, total, mask=unit < W)
        if HAS_BIAS:
            for start in range(0, K, COLUMNS):
                column = start + tl.arange(0, COLUMNS)
                inside = (unit < W)[:, None] & (column < K)[None, :]
                offsets = unit[:, None] * K + column[None, :]
                tile = tl.load(d_down + offsets, mask=inside, other=0.0).to(tl.float32)
                tile += total[:, None] * tl.load(bias + column, mask=column < K, other=0.0).to(tl.float32)[None, :]
                tl.store(d_down + offsets, tile.to(d_down.dtype.element_ty), mask=inside)
    else:
        row, column = (program - groups) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
        inside = (row < D)[:, None] & (column < W)[None, :]
        tile = tl.load(d_up + row[:, None] * P + column[None, :], mask=inside)
        tl.store(d_up_weight + row[:, None] * W + column[None, :], tile, mask=inside)
        tl.store(d_up_bias + row, tl.load(d_up + row * P + W, mask=row < D), mask=row < D)


@triton.jit
def widened_kernel(
    weight, up_weight, up_bias, out,
    OWN: tl.constexpr, W: tl.constexpr, P: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    groups: tl.constexpr = (OWN + P + COLUMNS - 1) // COLUMNS
    row = (tl.program_id(0) // groups).to(tl.int64)
    column = tl.program_id(0) % groups * COLUMNS + tl.arange(0, COLUMNS)
    unit = column - OWN
    tile = tl.load(up_weight + row * W + unit, mask=(unit >= 0) & (unit < W), other=0.0).to(tl.float32)
    tile += tl.load(up_bias + row + 0 * unit, mask=unit == W, other=0.0).to(tl.float32)
    if OWN > 0:
        tile += tl.load(weight + row * OWN + column, mask=column < OWN, other=0.0).to(tl.float32)
    tl.store(out + row * (OWN + P) + column, tile.to(out.dtype.element_ty), mask=column < OWN + P)


@triton.jit
def joined_kernel(
    weight, bias, down_weight, down_bias, out, out_bias,
    OWN: tl.constexpr, D: tl.constexpr, HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    inside = column < D
    if row < OWN:
        tile = tl.load(weight + row * D + column, mask=inside).to(out.dtype.element_ty)
        tl.store(out + row * D + column, tile, mask=inside)
        if HAS_BIAS:
            tl.store(out_bias + row, tl.load(bias + row).to(out.dtype.element_ty))
        else:
            tl.store(out_bias + row, 0.0)
    else:
        tile = tl.load(down_weight + (row - OWN) * D + column, mask=inside).to(out.dtype.element_ty)
        tl.store(out + row * D + column, tile, mask=inside)
        tl.store(out_bias + row, tl.load(down_bias + row - OWN).to(out.dtype.element_ty))
