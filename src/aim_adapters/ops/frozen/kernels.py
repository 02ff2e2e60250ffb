"""Run the row-wise parts of a frozen block as Triton kernels, each reading and writing every element once."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(x, KIND: tl.constexpr, EXACT: tl.constexpr):
    """Return an activation of float32 and its derivative; what a kernel does not use, the compiler leaves out.

    All but ReLU are x times a gate. A division would cost more than the square of a reciprocal square root.
    """
    if KIND == "relu":
        value = tl.where(x <= 0, 0.0, x)
        slope = tl.where(x <= 0, 0.0, 1.0)
    elif KIND == "gelu":
        power = tl.exp2(x * x * -0.7213475204444817)  # exp(-x^2 / 2)
        if EXACT:
            gate = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
        else:
            # Abramowitz and Stegun 7.1.26, right to 1e-7: half precision would wait for more instructions than memory.
            t = tl.rsqrt(1.0 + 0.23164189 * tl.abs(x))
            t *= t
            tail = 0.5307027145 * t - 0.7265760135
            tail = tail * t + 0.7107068705
            tail = tail * t - 0.142248368
            tail = (tail * t + 0.127414796) * t * power
            gate = tl.where(x < 0, tail, 1.0 - tail)
        value = x * gate
        slope = gate + x * power * 0.3989422804014327
    else:
        if KIND == "gelu_tanh":  # (1 + tanh(u)) / 2 is the logistic function of 2 u
            u = x * (1.5957691216057308 + 0.07135481282553567 * x * x)
            d_u = 1.5957691216057308 + 0.214064438476607 * x * x
        elif KIND == "quick_gelu":
            u = 1.702 * x
            d_u = 1.702
        else:  # silu
            u = x
            d_u = 1.0
        power = tl.exp2(tl.minimum(u * -1.4426950408889634, 126.0))  # finite
        gate = tl.rsqrt(1.0 + power)
        gate *= gate
        value = x * gate
        slope = gate + value * (power * gate) * d_u
    return value, slope


@triton.jit
def _elements(rows, K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the rows and columns of a program's tile, and where there is an element."""
    groups: tl.constexpr = (K + COLUMNS - 1) // COLUMNS
    row = (tl.program_id(0) // groups).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % groups * COLUMNS + tl.arange(0, COLUMNS)
    return row[:, None], column[None, :], (row < rows)[:, None] & (column < K)[None, :]


@triton.jit
def activation_kernel(
    pre, out, rows, PRE: tl.constexpr, OUT: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, EXACT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column, inside = _elements(rows, K, ROWS, COLUMNS)
    value, _ = activate(tl.load(pre + row * PRE + column, mask=inside, other=0.0).to(tl.float32), KIND, EXACT)
    tl.store(out + row * OUT + column, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def activation_backward_kernel(
    d_act, pre, rows, PRE: tl.constexpr, OUT: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, EXACT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column, inside = _elements(rows, K, ROWS, COLUMNS)
    gradient = tl.load(d_act + row * OUT + column, mask=inside, other=0.0).to(tl.float32)
    _, slope = activate(tl.load(pre + row * PRE + column, mask=inside, other=0.0).to(tl.float32), KIND, EXACT)
    tl.store(d_act + row * OUT + column, (gradient * slope).to(d_act.dtype.element_ty), mask=inside)


@triton.jit
def add_kernel(x, other, out, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    tile = tl.load(x + offsets, mask=inside).to(tl.float32) + tl.load(other + offsets, mask=inside).to(tl.float32)
    tl.store(out + offsets, tile.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _place(rows, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Return the columns, the offsets of a tile of rows, and where there is an element."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    return column, row[:, None] * D + column[None, :], (row < rows)[:, None] & (column < D)[None, :]


@triton.jit
def _normalize(tile, inside, eps, D: tl.constexpr):
    """Return the rows minus their means, and the reciprocals of their standard deviations."""
    centered = tl.where(inside, tile - (tl.sum(tile, 1) / D)[:, None], 0.0)
    return centered, tl.rsqrt(tl.sum(centered * centered, 1) / D + eps)[:, None]


@triton.jit
def layer_norm_kernel(
    x, other, weight, bias, total, out, rows, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, HAS_OTHER: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
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
    tl.store(out + offsets, h.to(out.dtype.element_ty), mask=inside)


@triton.jit
def layer_norm_backward_kernel(
    d_h, x, weight, d_residual, d_x, rows, eps,
    D: tl.constexpr, WIDTH: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    column, offsets, inside = _place(rows, D, WIDTH, ROWS)
    gradient = tl.load(d_h + offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:  # asked for early: its bytes come while the statistics are made
        residual = tl.load(d_residual + offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_WEIGHT:
        gradient *= tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32)[None, :]
    tile = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    centered, rstd = _normalize(tile, inside, eps, D)
    mean = (tl.sum(gradient, 1) / D)[:, None]
    along = (tl.sum(gradient * centered, 1) / D)[:, None] * rstd * rstd
    tile = (gradient - mean - centered * along) * rstd
    if HAS_RESIDUAL:
        tile += residual
    tl.store(d_x + offsets, tile.to(d_x.dtype.element_ty), mask=inside)
