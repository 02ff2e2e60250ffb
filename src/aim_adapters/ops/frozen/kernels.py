"""Triton kernels of the row-wise parts of a frozen block; each reads and writes every element once.

Letters: M rows (tokens), D features of a token (FEATURES), K hidden units of an MLP (UNITS). All arithmetic is float32,
whatever the dtypes of the tensors; what is written is rounded to the dtype of where it goes.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, EXACT_ERF: tl.constexpr):
    # Return f(x) and its derivative f'(x) of float32 x, of any shape; what a kernel does not use, the compiler leaves
    # out. All but ReLU are x times a gate g(x), so f'(x) = g(x) + x g'(x):
    #
    #     relu         max(x, 0), with derivative 0 at 0
    #     gelu         g = (1 + erf(x / sqrt(2))) / 2,              g' = exp(-x^2 / 2) / sqrt(2 pi)
    #     gelu_tanh    g = sigmoid(u), u = 2 sqrt(2 / pi) (x + 0.044715 x^3),  g' = g (1 - g) u'
    #     quick_gelu   g = sigmoid(1.702 x)
    #     silu         g = sigmoid(x)
    #
    # A division would cost more than the square of a reciprocal square root: sigmoid(u) = rsqrt(1 + exp(-u))^2.
    if ACTIVATION == "relu":
        value = tl.where(x <= 0, 0.0, x)
        slope = tl.where(x <= 0, 0.0, 1.0)
    elif ACTIVATION == "gelu":
        power = tl.exp2(x * x * -0.7213475204444817)  # exp(-x^2 / 2)
        if EXACT_ERF:
            gate = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
        else:
            # Abramowitz and Stegun 7.1.26, right to 1e-7: half precision would wait for more instructions than memory.
            # tail = (1 - erf(|x| / sqrt(2))) / 2, a polynomial in t = 1 / (1 + 0.2316 |x|) times exp(-x^2 / 2).
            t = tl.rsqrt(1.0 + 0.23164189 * tl.abs(x))
            t *= t
            tail = 0.5307027145 * t - 0.7265760135
            tail = tail * t + 0.7107068705
            tail = tail * t - 0.142248368
            tail = (tail * t + 0.127414796) * t * power
            gate = tl.where(x < 0, tail, 1.0 - tail)
        value = x * gate
        slope = gate + x * power * 0.3989422804014327  # 1 / sqrt(2 pi)
    else:
        if ACTIVATION == "gelu_tanh":  # (1 + tanh(u / 2)) / 2 = sigmoid(u)
            u = x * (1.5957691216057308 + 0.07135481282553567 * x * x)
            d_u = 1.5957691216057308 + 0.214064438476607 * x * x
        elif ACTIVATION == "quick_gelu":
            u = 1.702 * x
            d_u = 1.702
        else:  # silu
            u = x
            d_u = 1.0
        power = tl.exp2(tl.minimum(u * -1.4426950408889634, 126.0))  # exp(-u), kept finite
        gate = tl.rsqrt(1.0 + power)
        gate *= gate
        value = x * gate
        slope = gate + value * (power * gate) * d_u  # 1 - gate = power * gate
    return value, slope


@triton.jit
def _tile_of_elements(num_rows, UNITS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    # Return the rows [BLOCK_ROWS, 1] and columns [1, BLOCK_COLUMNS] of a program's tile of [M, K], and where there is
    # an element. Program p = row tile * column tiles + column tile.
    column_tiles: tl.constexpr = (UNITS + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    row = (tl.program_id(0) // column_tiles).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(0) % column_tiles * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    return row[:, None], column[None, :], (row < num_rows)[:, None] & (column < UNITS)[None, :]


@triton.jit
def activation_kernel(
    pre_ptr, value_ptr, out_ptr, num_rows,
    STRIDE_PRE_ROW: tl.constexpr, STRIDE_OUT_ROW: tl.constexpr, UNITS: tl.constexpr, ACTIVATION: tl.constexpr,
    GATED: tl.constexpr, EXACT_ERF: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    # out = f(pre), or with GATED f(pre) * value, all [M, K]; rows of pre and of value are STRIDE_PRE_ROW apart.
    # A program computes one tile [BLOCK_ROWS, BLOCK_COLUMNS].
    row, column, inside = _tile_of_elements(num_rows, UNITS, BLOCK_ROWS, BLOCK_COLUMNS)
    offsets = row * STRIDE_PRE_ROW + column
    pre = tl.load(pre_ptr + offsets, mask=inside, other=0.0)
    if GATED:  # asked for early: its bytes come while the other is activated
        value = tl.load(value_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    activated, _ = activate(pre.to(tl.float32), ACTIVATION, EXACT_ERF)
    if GATED:
        activated *= value
    tl.store(out_ptr + row * STRIDE_OUT_ROW + column, activated.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def activation_backward_kernel(
    d_act_ptr, pre_ptr, value_ptr, d_pre_ptr, num_rows,
    STRIDE_PRE_ROW: tl.constexpr, STRIDE_OUT_ROW: tl.constexpr, UNITS: tl.constexpr, ACTIVATION: tl.constexpr,
    GATED: tl.constexpr, EXACT_ERF: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    # All are [M, K]; rows of d_act and of d_pre are STRIDE_OUT_ROW apart, those of pre and of value STRIDE_PRE_ROW.
    #
    #     d_pre = d_act * f'(pre)                                         in place of d_act
    #     d_pre = d_act * value * f'(pre),  d_value = d_act * f(pre)      with GATED, d_value in place of d_act
    #
    # A program computes one tile [BLOCK_ROWS, BLOCK_COLUMNS].
    row, column, inside = _tile_of_elements(num_rows, UNITS, BLOCK_ROWS, BLOCK_COLUMNS)
    offsets, out_offsets = row * STRIDE_PRE_ROW + column, row * STRIDE_OUT_ROW + column
    d_act = tl.load(d_act_ptr + out_offsets, mask=inside, other=0.0).to(tl.float32)
    pre = tl.load(pre_ptr + offsets, mask=inside, other=0.0)
    if GATED:
        value = tl.load(value_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    activated, slope = activate(pre.to(tl.float32), ACTIVATION, EXACT_ERF)
    if GATED:
        tl.store(d_pre_ptr + out_offsets, (d_act * value * slope).to(d_pre_ptr.dtype.element_ty), mask=inside)
        d_in_place = d_act * activated
    else:
        d_in_place = d_act * slope
    tl.store(d_act_ptr + out_offsets, d_in_place.to(d_act_ptr.dtype.element_ty), mask=inside)


@triton.jit
def add_kernel(x_ptr, other_ptr, out_ptr, num_elements, BLOCK_ELEMENTS: tl.constexpr):
    # out = x + other, contiguous tensors of one shape. A program adds BLOCK_ELEMENTS elements.
    offsets = tl.program_id(0).to(tl.int64) * BLOCK_ELEMENTS + tl.arange(0, BLOCK_ELEMENTS)
    inside = offsets < num_elements
    x = tl.load(x_ptr + offsets, mask=inside).to(tl.float32)
    total = x + tl.load(other_ptr + offsets, mask=inside).to(tl.float32)
    tl.store(out_ptr + offsets, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _tile_of_rows(num_rows, FEATURES: tl.constexpr, BLOCK_FEATURES: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    # Return the columns [BLOCK_FEATURES], the offsets in a contiguous [M, D] of a program's BLOCK_ROWS whole rows, and
    # where there is an element, both [BLOCK_ROWS, BLOCK_FEATURES].
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_FEATURES)
    offsets = row[:, None] * FEATURES + column[None, :]
    return column, offsets, (row < num_rows)[:, None] & (column < FEATURES)[None, :]


@triton.jit
def _normalize(x, inside, eps, FEATURES: tl.constexpr, RMS: tl.constexpr = False):
    # Return the rows minus their means, and rstd = 1 / sqrt(variance + eps) of each row, [BLOCK_ROWS, 1]; with RMS the
    # rows as they are, zeros behind their ends, and the mean of their squares for the variance.
    centered = x if RMS else tl.where(inside, x - (tl.sum(x, 1) / FEATURES)[:, None], 0.0)
    return centered, tl.rsqrt(tl.sum(centered * centered, 1) / FEATURES + eps)[:, None]


@triton.jit
def _normalize_backward(g, centered, rstd, FEATURES: tl.constexpr, RMS: tl.constexpr):
    # Return the gradient of rows x from g, that of `centered * rstd`:
    #
    #     d_x = (g - sum(g) / D - c * rstd^2 * sum(g * c) / D) * rstd      with c = centered; RMS: without sum(g) / D
    along_centered = (tl.sum(g * centered, 1) / FEATURES)[:, None] * rstd * rstd
    if not RMS:
        g -= (tl.sum(g, 1) / FEATURES)[:, None]
    return (g - centered * along_centered) * rstd


@triton.jit
def layer_norm_kernel(
    x_ptr, other_ptr, weight_ptr, bias_ptr, total_ptr, out_ptr, num_rows, eps,
    FEATURES: tl.constexpr, BLOCK_FEATURES: tl.constexpr, RMS: tl.constexpr, HAS_OTHER: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    # total = x + other, rounded to the dtype it is stored in; out = (total - mean) * rstd * weight + bias, with
    #
    #     mean = sum(total) / D,  rstd = 1 / sqrt(sum((total - mean)^2) / D + eps)      of each row, float32
    #
    # or with RMS mean = 0. x, other, total and out are contiguous [M, D], weight and bias [D]. Without HAS_OTHER total
    # is x and not written. A program computes BLOCK_ROWS whole rows.
    column, offsets, inside = _tile_of_rows(num_rows, FEATURES, BLOCK_FEATURES, BLOCK_ROWS)
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_OTHER:
        x += tl.load(other_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(total_ptr.dtype.element_ty)  # the backward pass normalizes what is stored
        tl.store(total_ptr + offsets, rounded, mask=inside)
        x = rounded.to(tl.float32)
    centered, rstd = _normalize(x, inside, eps, FEATURES, RMS)
    h = centered * rstd
    if HAS_WEIGHT:
        h *= tl.load(weight_ptr + column, mask=column < FEATURES, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        h += tl.load(bias_ptr + column, mask=column < FEATURES, other=0.0).to(tl.float32)[None, :]
    tl.store(out_ptr + offsets, h.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def layer_norm_backward_kernel(
    d_h_ptr, x_ptr, weight_ptr, d_residual_ptr, d_x_ptr, num_rows, eps,
    FEATURES: tl.constexpr, BLOCK_FEATURES: tl.constexpr, RMS: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    # d_x = what `_normalize_backward` makes of g = d_h * weight, + d_residual; statistics of rows are computed again.
    # d_h, x, d_residual and d_x are contiguous [M, D], weight [D]; sums are float32. Weight and bias are frozen and get
    # no gradient. A program computes BLOCK_ROWS whole rows.
    column, offsets, inside = _tile_of_rows(num_rows, FEATURES, BLOCK_FEATURES, BLOCK_ROWS)
    g = tl.load(d_h_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:  # asked for early: its bytes come while the statistics are made
        d_residual = tl.load(d_residual_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_WEIGHT:
        g *= tl.load(weight_ptr + column, mask=column < FEATURES, other=0.0).to(tl.float32)[None, :]
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    centered, rstd = _normalize(x, inside, eps, FEATURES, RMS)
    d_x = _normalize_backward(g, centered, rstd, FEATURES, RMS)
    if HAS_RESIDUAL:
        d_x += d_residual
    tl.store(d_x_ptr + offsets, d_x.to(d_x_ptr.dtype.element_ty), mask=inside)
