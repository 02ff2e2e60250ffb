"""Triton kernels of activations that are normalized over an MLP's hidden units; a program holds whole rows.

Letters and arithmetic as in the kernels of the other row-wise parts. K units (UNITS) may be followed by columns of
zeros that products need, up to COLUMNS: they are written, and count in no norm.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aim_adapters.ops.frozen.kernels import _normalize, _normalize_backward, activate


@triton.jit
def _activated_rows(
    pre_ptr, value_ptr, row, column, inside,
    STRIDE_PRE_ROW: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, EXACT_ERF: tl.constexpr,
):  # fmt: skip
    # Return a = f(pre), or with GATED f(pre) * value; f(pre); f'(pre); and value, or f(pre) again. Zeros outside.
    offsets = row * STRIDE_PRE_ROW + column
    pre = tl.load(pre_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    activated, slope = activate(pre, ACTIVATION, EXACT_ERF)
    value = activated
    a = activated
    if GATED:
        value = tl.load(value_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        a = activated * value
    return a, activated, slope, value


@triton.jit
def activation_norm_kernel(
    pre_ptr, value_ptr, weight_ptr, bias_ptr, out_ptr, num_rows, eps,
    STRIDE_PRE_ROW: tl.constexpr, STRIDE_OUT_ROW: tl.constexpr, UNITS: tl.constexpr, COLUMNS: tl.constexpr,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, RMS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    EXACT_ERF: tl.constexpr, BLOCK_UNITS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    # out = (a - mean) * rstd * weight + bias over the K units of a = f(pre), or with GATED f(pre) * value; statistics
    # of each row, or with RMS mean = 0. Rows of pre and of value are STRIDE_PRE_ROW apart, weight and bias are [K].
    # A program computes BLOCK_ROWS whole rows.
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.arange(0, BLOCK_UNITS)[None, :]
    inside = (row < num_rows) & (column < UNITS)
    a, _, _, _ = _activated_rows(pre_ptr, value_ptr, row, column, inside, STRIDE_PRE_ROW, ACTIVATION, GATED, EXACT_ERF)
    centered, rstd = _normalize(a, inside, eps, UNITS, RMS)
    h = centered * rstd
    if HAS_WEIGHT:
        h *= tl.load(weight_ptr + column, mask=column < UNITS, other=0.0).to(tl.float32)
    if HAS_BIAS:
        h += tl.load(bias_ptr + column, mask=column < UNITS, other=0.0).to(tl.float32)
    written = (row < num_rows) & (column < COLUMNS)
    tl.store(out_ptr + row * STRIDE_OUT_ROW + column, h.to(out_ptr.dtype.element_ty), mask=written)


@triton.jit
def activation_norm_backward_kernel(
    d_out_ptr, pre_ptr, value_ptr, weight_ptr, d_pre_ptr, num_rows, eps,
    STRIDE_PRE_ROW: tl.constexpr, STRIDE_OUT_ROW: tl.constexpr, UNITS: tl.constexpr, COLUMNS: tl.constexpr,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, RMS: tl.constexpr, HAS_WEIGHT: tl.constexpr, EXACT_ERF: tl.constexpr,
    BLOCK_UNITS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    # With d_a, what `_normalize_backward` makes of g = d_out * weight, where activations and statistics are computed
    # again:
    #
    #     d_pre = d_a * f'(pre)                                     in place of d_out
    #     d_pre = d_a * value * f'(pre),  d_value = d_a * f(pre)    with GATED, d_value in place of d_out
    #
    # Rows of d_out and of d_pre are STRIDE_OUT_ROW apart. A program computes BLOCK_ROWS whole rows.
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.arange(0, BLOCK_UNITS)[None, :]
    inside = (row < num_rows) & (column < UNITS)
    out_offsets = row * STRIDE_OUT_ROW + column
    g = tl.load(d_out_ptr + out_offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_WEIGHT:
        g *= tl.load(weight_ptr + column, mask=column < UNITS, other=0.0).to(tl.float32)
    a, activated, slope, value = _activated_rows(
        pre_ptr, value_ptr, row, column, inside, STRIDE_PRE_ROW, ACTIVATION, GATED, EXACT_ERF
    )
    centered, rstd = _normalize(a, inside, eps, UNITS, RMS)
    d_a = tl.where(inside, _normalize_backward(g, centered, rstd, UNITS, RMS), 0.0)
    written = (row < num_rows) & (column < COLUMNS)
    if GATED:
        tl.store(d_pre_ptr + out_offsets, (d_a * value * slope).to(d_pre_ptr.dtype.element_ty), mask=written)
        d_in_place = d_a * activated
    else:
        d_in_place = d_a * slope
    tl.store(d_out_ptr + out_offsets, d_in_place.to(d_out_ptr.dtype.element_ty), mask=written)
