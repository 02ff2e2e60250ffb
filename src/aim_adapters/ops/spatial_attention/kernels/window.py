"""Attend within windows of up to 64 tokens: one tile holds a window, and its backward pass makes all three gradients.

A program goes through the same head and window of GROUP frames, so that bias, mask and index are read once for all.
With an index the rows of a tile lie anywhere in a frame: shifting, cutting and putting together cost no copies.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aim_adapters.ops.spatial_attention.kernels.parts import load, scale_and_add, store


@triton.jit
def _place(
    index, heads, windows, TOKENS: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr, HAS_INDEX: tl.constexpr
):
    """Return the head, the window, the first frame; where the rows lie in a sequence, and its length."""
    program = tl.program_id(0)
    window = program // heads % windows
    rows = tl.arange(0, ROWS)
    tokens = TOKENS
    if HAS_INDEX:
        tokens = windows * TOKENS
        rows = tl.load(index + window * TOKENS + rows, mask=rows < TOKENS, other=tokens)
    return (program % heads).to(tl.int64), window, program // heads // windows * GROUP, rows, tokens


@triton.jit
def _pairs(
    bias, mask, head, window, TOKENS: tl.constexpr, ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr
):
    """Return what is added to the scores, in units of log2: -inf for keys that are not there."""
    rows = tl.arange(0, ROWS)
    pairs = tl.where(rows < TOKENS, 0.0, float("-inf"))[None, :]
    if HAS_BIAS:
        bias += head * TOKENS * TOKENS
    if HAS_MASK:
        mask += window.to(tl.int64) * TOKENS * TOKENS
    return scale_and_add(pairs, bias, mask, rows[:, None], rows[None, :], 1.0, TOKENS, HAS_BIAS, HAS_MASK)


@triton.jit
def _softmax(q, k, pairs, scale):
    scores = tl.dot(q, tl.trans(k)) * (scale * 1.4426950408889634) + pairs
    powers = tl.exp2(scores - tl.max(scores, 1)[:, None])
    return powers / tl.sum(powers, 1)[:, None]


@triton.jit
def window_forward(
    qkv, o, lse, bias, mask, s_f, s_n, s_3, s_h, o_f, o_n, o_h, frames, heads, windows, scale, index,
    TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr, HAS_INDEX: tl.constexpr,
):  # fmt: skip
    head, window, first, rows, tokens = _place(index, heads, windows, TOKENS, ROWS, GROUP, HAS_INDEX)
    pairs = _pairs(bias, mask, head, window, TOKENS, ROWS, HAS_BIAS, HAS_MASK)
    for step in range(GROUP):
        frame = tl.minimum(first + step, frames - 1).to(tl.int64)  # the last again, where GROUP does not divide them
        if not HAS_INDEX:
            frame = frame * windows + window
        q_head = qkv + frame * s_f + head * s_h
        k_head = q_head + s_3
        q = load(q_head, rows, s_n, tokens, D, WIDTH)
        k = load(k_head, rows, s_n, tokens, D, WIDTH)
        v = load(k_head + s_3, rows, s_n, tokens, D, WIDTH)
        p = _softmax(q, k, pairs, scale)
        store(o + frame * o_f + head * o_h, tl.dot(p.to(v.dtype), v), rows, o_n, tokens, D, WIDTH)


@triton.jit
def window_backward(
    d_out, qkv, o, lse, delta, bias, mask, d_qkv, g_f, g_n, g_h, s_f, s_n, s_3, s_h, o_f, o_n, o_h,
    frames, heads, windows, scale, index,
    TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr, HAS_INDEX: tl.constexpr,
):  # fmt: skip
    head, window, first, rows, tokens = _place(index, heads, windows, TOKENS, ROWS, GROUP, HAS_INDEX)
    pairs = _pairs(bias, mask, head, window, TOKENS, ROWS, HAS_BIAS, HAS_MASK)
    for step in range(GROUP):
        frame = tl.minimum(first + step, frames - 1).to(tl.int64)  # the last again, where GROUP does not divide them
        if not HAS_INDEX:
            frame = frame * windows + window
        q_head = qkv + frame * s_f + head * s_h
        k_head = q_head + s_3
        q = load(q_head, rows, s_n, tokens, D, WIDTH)
        k = load(k_head, rows, s_n, tokens, D, WIDTH)
        v = load(k_head + s_3, rows, s_n, tokens, D, WIDTH)
        g = load(d_out + frame * g_f + head * g_h, rows, g_n, tokens, D, WIDTH)
        into = d_qkv + (frame * tokens * 3 * heads + head) * D
        # Queries beyond the tokens count for nothing: the gradient of what they got is zero.
        p = _softmax(q, k, pairs, scale)
        d_v = tl.dot(tl.trans(p.to(g.dtype)), g)
        store(into + 2 * heads * D, d_v, rows, 3 * heads * D, tokens, D, WIDTH)
        d_p = tl.dot(g, tl.trans(v))
        d_s = (p * (d_p - tl.sum(p * d_p, 1)[:, None])).to(k.dtype)
        d_q = tl.dot(d_s, k) * scale
        store(into, d_q, rows, 3 * heads * D, tokens, D, WIDTH)
        d_k = tl.dot(tl.trans(d_s), q) * scale
        store(into + heads * D, d_k, rows, 3 * heads * D, tokens, D, WIDTH)
