"""Share what the kernels are made of: tiles of rows that lie a stride apart, and the steps of a softmax over them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load(pointer, rows, stride, tokens, D: tl.constexpr, WIDTH: tl.constexpr):
    columns = tl.arange(0, WIDTH)
    offsets = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(pointer + offsets, mask=(rows < tokens)[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def store(pointer, tile, rows, stride, tokens, D: tl.constexpr, WIDTH: tl.constexpr):
    columns = tl.arange(0, WIDTH)
    offsets = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    inside = (rows < tokens)[:, None] & (columns < D)[None, :]
    tl.store(pointer + offsets, tile.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def load_row(pointer, rows, TOKENS: tl.constexpr):
    return tl.load(pointer + rows, mask=rows < TOKENS, other=0.0)


@triton.jit
def row_delta(o, g, rows, stride, TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """Return what the softmax's gradient subtracts in each row: the sum of probabilities times their gradients."""
    return tl.sum(load(o, rows, stride, TOKENS, D, WIDTH).to(tl.float32) * g.to(tl.float32), 1)


@triton.jit
def scale_and_add(
    scores, bias, mask, queries, keys, scale, TOKENS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr
):
    """Scale products and add what was given for each pair, in units of log2; one of queries and keys is a column."""
    scores *= scale * 1.4426950408889634
    inside = (queries < TOKENS) & (keys < TOKENS)
    if HAS_BIAS:
        scores += tl.load(bias + queries * TOKENS + keys, mask=inside, other=0.0).to(tl.float32) * 1.4426950408889634
    if HAS_MASK:
        scores += tl.load(mask + queries * TOKENS + keys, mask=inside, other=0.0).to(tl.float32) * 1.4426950408889634
    return scores


@triton.jit
def attend(
    peak, total, out, q, k, v, bias, mask, rows, start, scale,
    SIZE: tl.constexpr, EDGE: tl.constexpr, TOKENS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Take some keys into the softmax of a tile of queries."""
    if SIZE > 0:
        columns = start + tl.arange(0, SIZE)
        scores = tl.dot(q, tl.trans(k))
        scores = scale_and_add(scores, bias, mask, rows[:, None], columns[None, :], scale, TOKENS, HAS_BIAS, HAS_MASK)
        if EDGE:
            scores = tl.where((columns < TOKENS)[None, :], scores, float("-inf"))
        top = tl.maximum(peak, tl.max(scores, 1))
        shift = top
        if HAS_BIAS or HAS_MASK:  # all keys so far may be hidden
            shift = tl.where(top == float("-inf"), 0.0, top)
        powers = tl.exp2(scores - shift[:, None])
        fade = tl.exp2(peak - shift)
        out = tl.dot(powers.to(v.dtype), v, out * fade[:, None])
        total = total * fade + tl.sum(powers, 1)
        peak = top
    return peak, total, out


@triton.jit
def d_query(
    d_q, q, g, k, v, peak, delta, bias, mask, rows, start, scale,
    SIZE: tl.constexpr, EDGE: tl.constexpr, TOKENS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Add what some keys give to the gradient of a tile of queries, but for the scale."""
    if SIZE > 0:
        columns = start + tl.arange(0, SIZE)
        scores = tl.dot(q, tl.trans(k))
        scores = scale_and_add(scores, bias, mask, rows[:, None], columns[None, :], scale, TOKENS, HAS_BIAS, HAS_MASK)
        p = tl.exp2(scores - peak[:, None])
        if EDGE:
            p = tl.where((columns < TOKENS)[None, :], p, 0.0)
        d_p = tl.dot(g, tl.trans(v))
        d_q = tl.dot((p * (d_p - delta[:, None])).to(k.dtype), k, d_q)
    return d_q


@triton.jit
def d_key(
    d_k, d_v, k, v, q, g, lse, delta, bias, mask, rows, start, scale,
    SIZE: tl.constexpr, TOKENS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Add what some queries, the columns, give to the gradients of a tile of keys (but for the scale) and values."""
    if SIZE > 0:
        columns = start + tl.arange(0, SIZE)
        peak = load_row(lse, columns, TOKENS) * 1.4426950408889634
        scores = tl.dot(k, tl.trans(q))
        scores = scale_and_add(scores, bias, mask, columns[None, :], rows[:, None], scale, TOKENS, HAS_BIAS, HAS_MASK)
        p = tl.exp2(scores - peak[None, :])
        d_v = tl.dot(p.to(g.dtype), g, d_v)
        d_p = tl.dot(v, tl.trans(g)) - load_row(delta, columns, TOKENS)[None, :]
        d_k = tl.dot((p * d_p).to(q.dtype), q, d_k)
    return d_k, d_v


@triton.jit
def finish(o, lse, peak, total, out, rows, stride, TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    store(o, out / total[:, None], rows, stride, TOKENS, D, WIDTH)
    tl.store(lse + rows, (peak + tl.log2(total)) * 0.6931471805599453, mask=rows < TOKENS)


@triton.jit
def piece(x, y, x_n, y_n, start, SIZE: tl.constexpr, TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """Load the same rows of two tensors; of a piece that is not there, nothing is used."""
    rows = start + tl.arange(0, SIZE if SIZE > 0 else 16)
    return load(x, rows, x_n, TOKENS, D, WIDTH), load(y, rows, y_n, TOKENS, D, WIDTH)
