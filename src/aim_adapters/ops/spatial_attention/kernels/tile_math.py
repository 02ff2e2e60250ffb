"""What the kernels do with tiles: read and write rows a stride apart, and the steps of a softmax and its gradient.

A tile of queries goes over all keys, some at a time, by the online softmax (Milakov and Gimelshein, 2018): it holds the
largest score so far, the sum of exponentials below it, and the output that they weigh, and rescales the two when a
larger score comes.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)  # exp(x) = exp2(x * log2(e))
LN_2 = tl.constexpr(0.6931471805599453)  # log(x) = log2(x) * ln(2)


@triton.jit
def load(x_ptr, rows, stride_x_row, num_rows, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    # Read x[rows, :], of x [num_rows, HEAD_DIM]: a tile [rows, BLOCK_DIM].
    columns = tl.arange(0, BLOCK_DIM)
    offsets = rows.to(tl.int64)[:, None] * stride_x_row + columns[None, :]
    return tl.load(x_ptr + offsets, mask=(rows < num_rows)[:, None] & (columns < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def store(x_ptr, tile, rows, stride_x_row, num_rows, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    # Write a tile to x[rows, :], of x [num_rows, HEAD_DIM], rounded to its dtype.
    columns = tl.arange(0, BLOCK_DIM)
    offsets = rows.to(tl.int64)[:, None] * stride_x_row + columns[None, :]
    inside = (rows < num_rows)[:, None] & (columns < HEAD_DIM)[None, :]
    tl.store(x_ptr + offsets, tile.to(x_ptr.dtype.element_ty), mask=inside)


@triton.jit
def load_vector(x_ptr, rows, TOKENS: tl.constexpr):
    # Read x[rows], one number for each row, of x [TOKENS].
    return tl.load(x_ptr + rows, mask=rows < TOKENS, other=0.0)


@triton.jit
def load_two(
    x_ptr, y_ptr, stride_x_row, stride_y_row, start,
    SIZE: tl.constexpr, TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    # Read SIZE rows of two tensors from row `start` on. Nothing is used of tiles of size 0, which cannot be made.
    rows = start + tl.arange(0, SIZE if SIZE > 0 else 16)
    x = load(x_ptr, rows, stride_x_row, TOKENS, HEAD_DIM, BLOCK_DIM)
    return x, load(y_ptr, rows, stride_y_row, TOKENS, HEAD_DIM, BLOCK_DIM)


@triton.jit
def compute_delta(
    out_ptr, d_out, rows, stride_out_token, TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr
):
    # Return delta = sum(out * d_out, along d), float32 [rows]: what the softmax's gradient subtracts in each row.
    out = load(out_ptr, rows, stride_out_token, TOKENS, HEAD_DIM, BLOCK_DIM)
    return tl.sum(out.to(tl.float32) * d_out.to(tl.float32), 1)


@triton.jit
def scale_and_add(
    products, bias_ptr, mask_ptr, queries, keys, scale,
    TOKENS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    # Return scores in units of log2: (scale * products + bias[queries, keys] + mask[queries, keys]) * log2(e), of bias
    # and mask [N, N]. One of queries and keys is a column, [rows, 1], the other a row, [1, columns].
    products *= scale * LOG2_E
    inside = (queries < TOKENS) & (keys < TOKENS)
    if HAS_BIAS:
        products += tl.load(bias_ptr + queries * TOKENS + keys, mask=inside, other=0.0).to(tl.float32) * LOG2_E
    if HAS_MASK:
        products += tl.load(mask_ptr + queries * TOKENS + keys, mask=inside, other=0.0).to(tl.float32) * LOG2_E
    return products


@triton.jit
def add_keys(
    row_max, row_sum, acc, q, k, v, bias_ptr, mask_ptr, rows, start, scale,
    SIZE: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    # Take SIZE keys, from token `start` on, into the softmax of a tile of queries, the tokens `rows`:
    #
    #     new_max = max(row_max, max(s))                   [rows], in units of log2
    #     e       = exp2(s - new_max)                      [rows, SIZE]
    #     rescale = exp2(row_max - new_max)                [rows]
    #     acc     = acc * rescale + e v                    [rows, BLOCK_DIM], float32
    #     row_sum = row_sum * rescale + sum(e)             [rows], float32
    #
    # After all keys out = acc / row_sum. PADDED says that some of the keys may be beyond the tokens: they get -inf.
    if SIZE > 0:
        columns = start + tl.arange(0, SIZE)
        s = tl.dot(q, tl.trans(k))
        s = scale_and_add(s, bias_ptr, mask_ptr, rows[:, None], columns[None, :], scale, TOKENS, HAS_BIAS, HAS_MASK)
        if PADDED:
            s = tl.where((columns < TOKENS)[None, :], s, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(s, 1))
        shift = new_max
        if HAS_BIAS or HAS_MASK:  # all keys so far may be hidden: -inf less -inf would be NaN
            shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        e = tl.exp2(s - shift[:, None])
        rescale = tl.exp2(row_max - shift)
        acc = tl.dot(e.to(v.dtype), v, acc * rescale[:, None])
        row_sum = row_sum * rescale + tl.sum(e, 1)
        row_max = new_max
    return row_max, row_sum, acc


@triton.jit
def finish(
    out_ptr, lse_ptr, row_max, row_sum, acc, rows, stride_out_token,
    TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    # Write out[rows, :] = acc / row_sum and lse[rows] = log(sum(exp(s))), the maximum put back, natural units.
    store(out_ptr, acc / row_sum[:, None], rows, stride_out_token, TOKENS, HEAD_DIM, BLOCK_DIM)
    tl.store(lse_ptr + rows, (row_max + tl.log2(row_sum)) * LN_2, mask=rows < TOKENS)


@triton.jit
def add_to_d_q(
    d_q, q, d_out, k, v, lse_log2, delta, bias_ptr, mask_ptr, rows, start, scale,
    SIZE: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    # Add what SIZE keys, from token `start` on, give to the gradient of a tile of queries, the tokens `rows`, but for
    # the scale:
    #
    #     p    = exp2(s - lse)                 [rows, SIZE]; lse in units of log2, [rows]
    #     d_s  = p * (d_out v^T - delta)       [rows, SIZE]; delta [rows]
    #     d_q += d_s k                         [rows, BLOCK_DIM], float32
    if SIZE > 0:
        columns = start + tl.arange(0, SIZE)
        s = tl.dot(q, tl.trans(k))
        s = scale_and_add(s, bias_ptr, mask_ptr, rows[:, None], columns[None, :], scale, TOKENS, HAS_BIAS, HAS_MASK)
        p = tl.exp2(s - lse_log2[:, None])
        if PADDED:
            p = tl.where((columns < TOKENS)[None, :], p, 0.0)
        d_p = tl.dot(d_out, tl.trans(v))
        d_q = tl.dot((p * (d_p - delta[:, None])).to(k.dtype), k, d_q)
    return d_q


@triton.jit
def add_to_d_k_and_d_v(
    d_k, d_v, k, v, q, d_out, lse_ptr, delta_ptr, bias_ptr, mask_ptr, rows, start, scale,
    SIZE: tl.constexpr, TOKENS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    # Add what SIZE queries, from token `start` on, give to the gradients of a tile of keys (but for the scale) and
    # values, the tokens `rows`. All is computed transposed, keys along the rows and queries along the columns:
    #
    #     p^T   = exp2(s^T - lse)                      [rows, SIZE]; lse in units of log2, [SIZE]
    #     d_v  += p^T d_out                            [rows, BLOCK_DIM], float32
    #     d_s^T = p^T * (v d_out^T - delta)            [rows, SIZE]; delta [SIZE]
    #     d_k  += d_s^T q                              [rows, BLOCK_DIM], float32
    if SIZE > 0:
        columns = start + tl.arange(0, SIZE)
        lse_log2 = load_vector(lse_ptr, columns, TOKENS) * LOG2_E
        s = tl.dot(k, tl.trans(q))
        s = scale_and_add(s, bias_ptr, mask_ptr, columns[None, :], rows[:, None], scale, TOKENS, HAS_BIAS, HAS_MASK)
        p = tl.exp2(s - lse_log2[None, :])
        d_v = tl.dot(p.to(d_out.dtype), d_out, d_v)
        d_p_less_delta = tl.dot(v, tl.trans(d_out)) - load_vector(delta_ptr, columns, TOKENS)[None, :]
        d_k = tl.dot((p * d_p_less_delta).to(q.dtype), q, d_k)
    return d_k, d_v
