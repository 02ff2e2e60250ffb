"""Triton kernels of the hidden layer of an adapter; each reads and writes every element once.

Letters: M rows (tokens), W hidden units of an adapter (UNITS), P columns that it is given, more than W (COLUMNS): W of
activations, one that carries the up-projection's bias, and zeros. f is the factor on the branch of a row. What is
computed is float32, whatever the dtypes of the tensors; what is written is rounded to the dtype of where it goes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aim_adapters.ops.frozen.kernels import activate


@triton.jit
def _factor(factor_ptr, row, num_rows, rows_per_factor, scale, HAS_FACTOR: tl.constexpr):
    # Return f = scale * factor[row // rows_per_factor], of factor [clips], or f = scale: [BLOCK_ROWS, 1].
    f = tl.zeros(row.shape, tl.float32) + scale
    if HAS_FACTOR:
        f *= tl.load(factor_ptr + row // rows_per_factor, mask=row < num_rows, other=0.0).to(tl.float32)
    return f[:, None]


@triton.jit
def _activate(pre, IS_LINEAR: tl.constexpr, EXACT_ERF: tl.constexpr):
    # Return act(pre) and its slope, float32: of a GELU, or of an adapter that is linear.
    activated = pre.to(tl.float32)
    slope = tl.full(pre.shape, 1.0, tl.float32)
    if not IS_LINEAR:
        activated, slope = activate(activated, "gelu", EXACT_ERF)
    return activated, slope


@triton.jit
def _write_hidden(
    activated, f, out_ptr, row, column, num_rows,
    STRIDE_OUT_ROW: tl.constexpr, UNITS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_PADDING: tl.constexpr,
):  # fmt: skip
    # Write rows of out [M, P]: f * activated in the first W columns, f in the next one, and zeros up to P.
    row_ptr = out_ptr + row.to(tl.int64)[:, None] * STRIDE_OUT_ROW
    inside = (row < num_rows)[:, None]
    hidden_ptr = row_ptr + column[None, :]
    tl.store(hidden_ptr, (activated * f).to(out_ptr.dtype.element_ty), mask=inside & (column < UNITS)[None, :])
    # Apart: a power of two that holds all P columns would be mostly empty.
    padding = tl.arange(0, BLOCK_PADDING)[None, :]
    tile = tl.where(padding == 0, f, 0.0).to(out_ptr.dtype.element_ty)
    tl.store(row_ptr + UNITS + padding, tile, mask=inside & (padding < COLUMNS - UNITS))


@triton.jit
def hidden_kernel(
    pre_ptr, out_ptr, factor_ptr, num_rows, rows_per_factor, scale,
    STRIDE_PRE_ROW: tl.constexpr, STRIDE_OUT_ROW: tl.constexpr, UNITS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_UNITS: tl.constexpr, BLOCK_PADDING: tl.constexpr, HAS_FACTOR: tl.constexpr, IS_LINEAR: tl.constexpr,
    EXACT_ERF: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    # out[m] = (f[m] * act(pre[m]), f[m], 0, ...), of pre [M, W] and out [M, P], f[m] = scale * factor of the clip of
    # row m. A program computes BLOCK_ROWS whole rows.
    row, column = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS), tl.arange(0, BLOCK_UNITS)
    inside = (row < num_rows)[:, None] & (column < UNITS)[None, :]
    pre = tl.load(pre_ptr + row.to(tl.int64)[:, None] * STRIDE_PRE_ROW + column[None, :], mask=inside, other=0.0)
    activated, _ = _activate(pre, IS_LINEAR, EXACT_ERF)
    f = _factor(factor_ptr, row, num_rows, rows_per_factor, scale, HAS_FACTOR)
    _write_hidden(activated, f, out_ptr, row, column, num_rows, STRIDE_OUT_ROW, UNITS, COLUMNS, BLOCK_PADDING)


@triton.jit
def hidden_backward_kernel(
    d_hidden_ptr, pre_ptr, out_ptr, sums_ptr, factor_ptr, num_rows, rows_per_factor, scale,
    STRIDE_D_HIDDEN_ROW: tl.constexpr, STRIDE_PRE_ROW: tl.constexpr, STRIDE_OUT_ROW: tl.constexpr,
    UNITS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_UNITS: tl.constexpr, BLOCK_PADDING: tl.constexpr,
    HAS_OUT: tl.constexpr, HAS_FACTOR: tl.constexpr, IS_LINEAR: tl.constexpr, EXACT_ERF: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, TILES: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    # d_pre[m] = f[m] * d_hidden[m] * act'(pre[m]), all [M, W], in place of d_hidden; and of the rows of each program
    # sums[program] = sum(d_pre), float32 [programs, W], which the bias' gradient is made of. With HAS_OUT what
    # `hidden_kernel` writes is written again. A program computes TILES tiles of BLOCK_ROWS whole rows.
    column = tl.arange(0, BLOCK_UNITS)
    total = tl.zeros(
        (BLOCK_ROWS, BLOCK_UNITS), tl.float32
    )  # rows are added up at the end, as warps have to meet for it
    for index in tl.range(0, TILES, num_stages=NUM_STAGES):
        row = (tl.program_id(0) * TILES + index) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        inside = (row < num_rows)[:, None] & (column < UNITS)[None, :]
        pre = tl.load(pre_ptr + row.to(tl.int64)[:, None] * STRIDE_PRE_ROW + column[None, :], mask=inside, other=0.0)
        offsets = row.to(tl.int64)[:, None] * STRIDE_D_HIDDEN_ROW + column[None, :]
        gradient = tl.load(d_hidden_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        activated, slope = _activate(pre, IS_LINEAR, EXACT_ERF)
        f = _factor(factor_ptr, row, num_rows, rows_per_factor, scale, HAS_FACTOR)
        gradient *= slope * f
        total += gradient
        tl.store(d_hidden_ptr + offsets, gradient.to(d_hidden_ptr.dtype.element_ty), mask=inside)
        if HAS_OUT:
            _write_hidden(activated, f, out_ptr, row, column, num_rows, STRIDE_OUT_ROW, UNITS, COLUMNS, BLOCK_PADDING)
    tl.store(sums_ptr + tl.program_id(0).to(tl.int64) * UNITS + column, tl.sum(total, 0), mask=column < UNITS)


@triton.jit
def gradients_kernel(
    d_down_ptr, sums_ptr, d_up_ptr, bias_ptr, d_down_bias_ptr, d_up_weight_ptr, d_up_bias_ptr, num_sums,
    UNITS: tl.constexpr, COLUMNS: tl.constexpr, OUT_FEATURES: tl.constexpr, IN_FEATURES: tl.constexpr,
    BLOCK_UNITS: tl.constexpr, HAS_BIAS: tl.constexpr, PROGRAM_UNITS: tl.constexpr, BLOCK_SUMS: tl.constexpr,
    STEPS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    # Finish the gradients of an adapter, whose down-projection is [W, K] (UNITS, IN_FEATURES) and whose up-projection
    # is [D, W] (OUT_FEATURES, UNITS). The first ceil(W / PROGRAM_UNITS) programs make, of PROGRAM_UNITS units each,
    #
    #     d_down_bias[w] = sum(sums[:, w])                     of sums [n, W], float32, n = num_sums
    #     d_down[w, :]  += d_down_bias[w] * bias               of d_down [W, K], in place, and bias [K], with HAS_BIAS
    #
    # and the others split d_up [D, P] into d_up_weight [D, W], its first W columns, and d_up_bias [D], the next one,
    # BLOCK_ROWS rows each. STEPS * BLOCK_SUMS >= n.
    unit_programs: tl.constexpr = (UNITS + PROGRAM_UNITS - 1) // PROGRAM_UNITS
    program = tl.program_id(0)
    if program < unit_programs:
        unit = program * PROGRAM_UNITS + tl.arange(0, PROGRAM_UNITS)
        total = tl.zeros((PROGRAM_UNITS,), tl.float32)
        for step in range(STEPS):
            index = step * BLOCK_SUMS + tl.arange(0, BLOCK_SUMS)
            inside = (index < num_sums)[:, None] & (unit < UNITS)[None, :]
            index_ptr = sums_ptr + index.to(tl.int64)[:, None] * UNITS
            total += tl.sum(tl.load(index_ptr + unit[None, :], mask=inside, other=0.0), 0)
        tl.store(d_down_bias_ptr + unit, total, mask=unit < UNITS)
        if HAS_BIAS:
            for start in range(0, IN_FEATURES, BLOCK_COLUMNS):
                column = start + tl.arange(0, BLOCK_COLUMNS)
                inside = (unit < UNITS)[:, None] & (column < IN_FEATURES)[None, :]
                offsets = unit[:, None] * IN_FEATURES + column[None, :]
                d_down = tl.load(d_down_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
                total_column = total[:, None]
                bias = tl.load(bias_ptr + column, mask=column < IN_FEATURES, other=0.0).to(tl.float32)
                d_down += total_column * bias[None, :]
                tl.store(d_down_ptr + offsets, d_down.to(d_down_ptr.dtype.element_ty), mask=inside)
    else:
        row, column = (program - unit_programs) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS), tl.arange(0, BLOCK_UNITS)
        inside = (row < OUT_FEATURES)[:, None] & (column < UNITS)[None, :]
        d_up_weight = tl.load(d_up_ptr + row[:, None] * COLUMNS + column[None, :], mask=inside)
        tl.store(d_up_weight_ptr + row[:, None] * UNITS + column[None, :], d_up_weight, mask=inside)
        d_up_bias_rows_ptr = d_up_bias_ptr + row
        d_up_bias = tl.load(d_up_ptr + row * COLUMNS + UNITS, mask=row < OUT_FEATURES)
        tl.store(d_up_bias_rows_ptr, d_up_bias, mask=row < OUT_FEATURES)


@triton.jit
def _write_wide_row(
    weight_ptr, gamma, up_weight_ptr, up_bias_ptr, out_ptr, row,
    OWN_COLUMNS: tl.constexpr, UNITS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    # out[row] = (gamma * weight[row], up_weight[row], up_bias[row], 0, ...), K + P columns; as `widened_kernel`.
    for start in tl.static_range(0, OWN_COLUMNS + COLUMNS, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        unit = column - OWN_COLUMNS
        # Each column is of one source: the other loads give it zeros.
        tile = tl.load(up_weight_ptr + row * UNITS + unit, mask=(unit >= 0) & (unit < UNITS), other=0.0).to(tl.float32)
        tile += tl.load(up_bias_ptr + row + 0 * unit, mask=unit == UNITS, other=0.0).to(tl.float32)
        if start < OWN_COLUMNS:
            own = tl.load(weight_ptr + row * OWN_COLUMNS + column, mask=column < OWN_COLUMNS, other=0.0)
            tile += own.to(tl.float32) * gamma
        inside = column < OWN_COLUMNS + COLUMNS
        tl.store(out_ptr + row * (OWN_COLUMNS + COLUMNS) + column, tile.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _copy_row(
    weight_ptr, bias_ptr, row, out_ptr, out_bias_ptr, out_row,
    FEATURES: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    # Row `row` of a layer, weight [K, D] and bias [K] or zeros, becomes row `out_row` of out [K', D] and out_bias [K'].
    for start in tl.static_range(0, FEATURES, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        tile = tl.load(weight_ptr + row * FEATURES + column, mask=column < FEATURES, other=0.0)
        tl.store(out_ptr + out_row * FEATURES + column, tile.to(out_ptr.dtype.element_ty), mask=column < FEATURES)
    if HAS_BIAS:
        tl.store(out_bias_ptr + out_row, tl.load(bias_ptr + row).to(out_bias_ptr.dtype.element_ty))
    else:
        tl.store(out_bias_ptr + out_row, 0.0)


@triton.jit
def _scale_of(gamma_ptr, row, HAS_GAMMA: tl.constexpr):
    # Return the LayerScale of a feature, or 1.
    gamma = 1.0
    if HAS_GAMMA:
        gamma = tl.load(gamma_ptr + row).to(tl.float32)
    return gamma


@triton.jit
def _down_row(
    weight_ptr, bias_ptr, row, layer_bias_ptr, gamma_ptr, out_ptr, out_bias_ptr, out_row,
    FEATURES: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_GAMMA: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    # Row `row` of a down-projection, as `_copy_row` does; its bias behind a layer with bias and LayerScale [D].
    bias = tl.load(bias_ptr + row).to(tl.float32)
    for start in tl.static_range(0, FEATURES, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        inside = column < FEATURES
        tile = tl.load(weight_ptr + row * FEATURES + column, mask=inside, other=0.0).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + out_row * FEATURES + column, tile, mask=inside)
        if HAS_BIAS:
            added = tl.load(layer_bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
            if HAS_GAMMA:
                added *= tl.load(gamma_ptr + column, mask=inside, other=0.0).to(tl.float32)
            bias += tl.sum(tile.to(tl.float32) * added, 0)
    tl.store(out_bias_ptr + out_row, bias.to(out_bias_ptr.dtype.element_ty))


@triton.jit
def output_layer_kernel(
    weight_ptr, bias_ptr, gamma_ptr,
    down_weight_1_ptr, down_bias_1_ptr, up_weight_1_ptr, up_bias_1_ptr, widened_1_ptr,
    down_weight_2_ptr, down_bias_2_ptr, up_weight_2_ptr, up_bias_2_ptr, widened_2_ptr,
    downs_ptr, biases_ptr, out_bias_ptr,
    FEATURES: tl.constexpr, OWN_1: tl.constexpr, UNITS_1: tl.constexpr, COLUMNS_1: tl.constexpr,
    OWN_2: tl.constexpr, UNITS_2: tl.constexpr, COLUMNS_2: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_GAMMA: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    # Around a layer with weight [D, K], bias [D] and LayerScale gamma [D], of one or two adapters (UNITS_2 = 0) of
    # widths W: widened [D, K + P] or [D, P] (OWN = K or 0), as `_write_wide_row` does; the down-projections one below
    # the other, downs [W1 + W2, D], and their biases behind the layer's, biases [W1 + W2] = down_bias + down_weight
    # out_bias; out_bias = gamma * bias. All contiguous. The first D programs write rows of widened, the rest of downs.
    row = tl.program_id(0).to(tl.int64)
    if row < FEATURES:
        gamma = _scale_of(gamma_ptr, row, HAS_GAMMA)
        _write_wide_row(
            weight_ptr, gamma, up_weight_1_ptr, up_bias_1_ptr, widened_1_ptr, row, OWN_1, UNITS_1, COLUMNS_1,
            BLOCK_COLUMNS,
        )  # fmt: skip
        if UNITS_2 > 0:
            _write_wide_row(
                weight_ptr, gamma, up_weight_2_ptr, up_bias_2_ptr, widened_2_ptr, row, OWN_2, UNITS_2, COLUMNS_2,
                BLOCK_COLUMNS,
            )  # fmt: skip
        if HAS_BIAS:
            bias = tl.load(bias_ptr + row).to(tl.float32) * gamma
            tl.store(out_bias_ptr + row, bias.to(out_bias_ptr.dtype.element_ty))
    else:
        unit = row - FEATURES
        if unit < UNITS_1:
            _down_row(
                down_weight_1_ptr, down_bias_1_ptr, unit, bias_ptr, gamma_ptr, downs_ptr, biases_ptr, unit,
                FEATURES, HAS_BIAS, HAS_GAMMA, BLOCK_COLUMNS,
            )  # fmt: skip
        elif UNITS_2 > 0:
            _down_row(
                down_weight_2_ptr, down_bias_2_ptr, unit - UNITS_1, bias_ptr, gamma_ptr, downs_ptr, biases_ptr, unit,
                FEATURES, HAS_BIAS, HAS_GAMMA, BLOCK_COLUMNS,
            )  # fmt: skip


@triton.jit
def mlp_layers_kernel(
    in_weight_ptr, in_bias_ptr, down_weight_ptr, down_bias_ptr, first_weight_ptr, first_bias_ptr,
    out_weight_ptr, out_bias_ptr, gamma_ptr, up_weight_ptr, up_bias_ptr, last_weight_ptr, last_bias_ptr,
    HIDDEN: tl.constexpr, FEATURES: tl.constexpr, UNITS: tl.constexpr, COLUMNS: tl.constexpr,
    HAS_IN_BIAS: tl.constexpr, HAS_OUT_BIAS: tl.constexpr, HAS_GAMMA: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    # Both layers of an MLP and of an adapter beside it: first [K + W, D] and [K + W], as `joined_kernel` does; and
    # last [D, K + P], as `_write_wide_row` does, last_bias = gamma * out_bias [D]. K is HIDDEN. All contiguous.
    # A program writes a row: first those of the last layer, which are longer.
    row = tl.program_id(0).to(tl.int64)
    if row < FEATURES:
        gamma = _scale_of(gamma_ptr, row, HAS_GAMMA)
        _write_wide_row(
            out_weight_ptr, gamma, up_weight_ptr, up_bias_ptr, last_weight_ptr, row, HIDDEN, UNITS, COLUMNS,
            BLOCK_COLUMNS,
        )  # fmt: skip
        if HAS_OUT_BIAS:
            bias = tl.load(out_bias_ptr + row).to(tl.float32) * gamma
            tl.store(last_bias_ptr + row, bias.to(last_bias_ptr.dtype.element_ty))
    elif row < FEATURES + HIDDEN:
        out_row = row - FEATURES
        _copy_row(
            in_weight_ptr, in_bias_ptr, out_row, first_weight_ptr, first_bias_ptr, out_row, FEATURES, HAS_IN_BIAS,
            BLOCK_COLUMNS,
        )  # fmt: skip
    else:
        out_row = row - FEATURES
        _copy_row(
            down_weight_ptr, down_bias_ptr, out_row - HIDDEN, first_weight_ptr, first_bias_ptr, out_row, FEATURES, True,
            BLOCK_COLUMNS,
        )  # fmt: skip


@triton.jit
def widened_kernel(
    weight_ptr, up_weight_ptr, up_bias_ptr, out_ptr,
    GIVEN_COLUMNS: tl.constexpr, OWN_COLUMNS: tl.constexpr, UNITS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    # out[d] = (weight[d], up_weight[d], up_bias[d], 0, ...), of a layer's weight [D, K] (GIVEN_COLUMNS, 0 for no layer;
    # with zeros behind up to OWN_COLUMNS), up_weight [D, W], up_bias [D] and out [D, OWN_COLUMNS + P], all contiguous:
    # (x, f h, f, 0, ...) out^T = x weight^T + f (h up_weight^T + up_bias). A program computes BLOCK_COLUMNS columns of
    # one row.
    column_tiles: tl.constexpr = (OWN_COLUMNS + COLUMNS + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    row = (tl.program_id(0) // column_tiles).to(tl.int64)
    column = tl.program_id(0) % column_tiles * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    unit = column - OWN_COLUMNS
    # Each column is of one source: the other loads give it zeros.
    tile = tl.load(up_weight_ptr + row * UNITS + unit, mask=(unit >= 0) & (unit < UNITS), other=0.0).to(tl.float32)
    tile += tl.load(up_bias_ptr + row + 0 * unit, mask=unit == UNITS, other=0.0).to(tl.float32)
    if GIVEN_COLUMNS > 0:
        own = tl.load(weight_ptr + row * GIVEN_COLUMNS + column, mask=column < GIVEN_COLUMNS, other=0.0)
        tile += own.to(tl.float32)
    inside = column < OWN_COLUMNS + COLUMNS
    tl.store(out_ptr + row * (OWN_COLUMNS + COLUMNS) + column, tile.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _row(weight_ptr, bias_ptr, row, column, ROWS: tl.constexpr, FEATURES: tl.constexpr, HAS_BIAS: tl.constexpr):
    # Return a row of weight [ROWS, FEATURES] and its element of bias [ROWS], float32: zeros for a row that is not
    # there, and without HAS_BIAS.
    there = (row >= 0) & (row < ROWS)
    tile = tl.load(weight_ptr + row * FEATURES + column, mask=there & (column < FEATURES), other=0.0).to(tl.float32)
    bias = 0.0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + row, mask=there, other=0.0).to(tl.float32)
    return tile, bias


@triton.jit
def joined_kernel(
    first_ptr, first_bias_ptr, second_ptr, second_bias_ptr, down_ptr, down_bias_ptr, out_ptr, out_bias_ptr,
    OWN_ROWS: tl.constexpr, ALIGNED_ROWS: tl.constexpr, DOWN_ROWS: tl.constexpr, FEATURES: tl.constexpr,
    HAS_FIRST_BIAS: tl.constexpr, HAS_SECOND: tl.constexpr, HAS_SECOND_BIAS: tl.constexpr, BLOCK_FEATURES: tl.constexpr,
):  # fmt: skip
    # The rows of a layer, first [K, D] (OWN_ROWS, FEATURES), below them with HAS_SECOND those of a second of the same
    # size, and those of a down-projection, down [W, D] (DOWN_ROWS, may be 0), as out [.., D]; their biases, or zeros,
    # as out_bias. Each layer but the last takes ALIGNED_ROWS, zeros behind K. All are contiguous. A program copies one
    # row, which is of one source: the others give it zeros.
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_FEATURES)
    tile, bias = _row(first_ptr, first_bias_ptr, row, column, OWN_ROWS, FEATURES, HAS_FIRST_BIAS)
    below = row - ALIGNED_ROWS
    if HAS_SECOND:
        other, other_bias = _row(second_ptr, second_bias_ptr, below, column, OWN_ROWS, FEATURES, HAS_SECOND_BIAS)
        tile += other
        bias += other_bias
        below -= ALIGNED_ROWS
    if DOWN_ROWS > 0:
        other, other_bias = _row(down_ptr, down_bias_ptr, below, column, DOWN_ROWS, FEATURES, True)
        tile += other
        bias += other_bias
    tl.store(out_ptr + row * FEATURES + column, tile.to(out_ptr.dtype.element_ty), mask=column < FEATURES)
    tl.store(out_bias_ptr + row, bias)
