"""Attend within frames of up to a few hundred tokens, a program taking the whole of a head.

All is computed transposed: keys are rows. Queries then are columns, which come in eights where rows come in 64s, and
their gradient stays in registers, in up to five pieces, while the program walks over the tiles of keys. A few keys
behind the last whole tile would waste most of one: they become the columns of a narrow tile instead.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aim_adapters.ops.spatial_attention.kernels.parts import (
    attend,
    finish,
    load,
    load_row,
    piece,
    row_delta,
    scale_and_add,
    store,
)


@triton.jit
def _attend_tail(
    peak, total, out, q, k, v, bias, mask, queries, start, scale,
    SIZE: tl.constexpr, EDGE: tl.constexpr, TOKENS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Do as `attend` does, with the queries as columns and the output transposed."""
    if SIZE > 0:
        keys = start + tl.arange(0, SIZE)
        scores = tl.dot(k, tl.trans(q))
        scores = scale_and_add(scores, bias, mask, queries[None, :], keys[:, None], scale, TOKENS, HAS_BIAS, HAS_MASK)
        if EDGE:
            scores = tl.where((keys < TOKENS)[:, None], scores, float("-inf"))
        top = tl.maximum(peak, tl.max(scores, 0))
        shift = top
        if HAS_BIAS or HAS_MASK:  # all keys so far may be hidden
            shift = tl.where(top == float("-inf"), 0.0, top)
        powers = tl.exp2(scores - shift[None, :])
        fade = tl.exp2(peak - shift)
        out = tl.dot(tl.trans(v), powers.to(v.dtype), out * fade[None, :])
        total = total * fade + tl.sum(powers, 0)
        peak = top
    return peak, total, out


@triton.jit
def whole_forward(
    qkv, o, lse, bias, mask, s_f, s_n, s_3, s_h, o_f, o_n, o_h, frames, heads, windows, scale,
    TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr, P4: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    head = (tl.program_id(0) % heads).to(tl.int64)
    frame = (tl.program_id(0) // heads).to(tl.int64)
    q_head = qkv + frame * s_f + head * s_h
    k_head = q_head + s_3
    v_head = k_head + s_3  # no multiple of a stride, which may pass 32 bits
    o += frame * o_f + head * o_h
    lse += (frame * heads + head) * TOKENS
    if HAS_BIAS:
        bias += head * TOKENS * TOKENS
    if HAS_MASK:
        mask += (frame % windows) * TOKENS * TOKENS
    S1: tl.constexpr = P0
    S2: tl.constexpr = S1 + P1
    S3: tl.constexpr = S2 + P2
    S4: tl.constexpr = S3 + P3
    END: tl.constexpr = S4 + P4
    TAIL: tl.constexpr = 0 < TOKENS % ROWS and TOKENS % ROWS <= 16
    FULL: tl.constexpr = TOKENS // ROWS * ROWS if TAIL else TOKENS
    k0, v0 = piece(k_head, v_head, s_n, s_n, 0, P0, TOKENS, D, WIDTH)
    k1, v1 = piece(k_head, v_head, s_n, s_n, S1, P1, TOKENS, D, WIDTH)
    k2, v2 = piece(k_head, v_head, s_n, s_n, S2, P2, TOKENS, D, WIDTH)
    k3, v3 = piece(k_head, v_head, s_n, s_n, S3, P3, TOKENS, D, WIDTH)
    k4, v4 = piece(k_head, v_head, s_n, s_n, S4, P4, TOKENS, D, WIDTH)
    for first in range(0, FULL, ROWS):
        rows = first + tl.arange(0, ROWS)
        q = load(q_head, rows, s_n, TOKENS, D, WIDTH)
        peak = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        out = tl.zeros((ROWS, WIDTH), tl.float32)
        peak, total, out = attend(
            peak, total, out, q, k0, v0, bias, mask, rows, 0, scale,
            P0, S1 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        peak, total, out = attend(
            peak, total, out, q, k1, v1, bias, mask, rows, S1, scale,
            P1, S2 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        peak, total, out = attend(
            peak, total, out, q, k2, v2, bias, mask, rows, S2, scale,
            P2, S3 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        peak, total, out = attend(
            peak, total, out, q, k3, v3, bias, mask, rows, S3, scale,
            P3, S4 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        peak, total, out = attend(
            peak, total, out, q, k4, v4, bias, mask, rows, S4, scale,
            P4, END > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        finish(o, lse, peak, total, out, rows, o_n, TOKENS, D, WIDTH)
    if TAIL:
        rows = FULL + tl.arange(0, 16)
        q = load(q_head, rows, s_n, TOKENS, D, WIDTH)
        peak = tl.full((16,), float("-inf"), tl.float32)
        total = tl.zeros((16,), tl.float32)
        out = tl.zeros((WIDTH, 16), tl.float32)
        peak, total, out = _attend_tail(
            peak, total, out, q, k0, v0, bias, mask, rows, 0, scale,
            P0, S1 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        peak, total, out = _attend_tail(
            peak, total, out, q, k1, v1, bias, mask, rows, S1, scale,
            P1, S2 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        peak, total, out = _attend_tail(
            peak, total, out, q, k2, v2, bias, mask, rows, S2, scale,
            P2, S3 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        peak, total, out = _attend_tail(
            peak, total, out, q, k3, v3, bias, mask, rows, S3, scale,
            P3, S4 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        peak, total, out = _attend_tail(
            peak, total, out, q, k4, v4, bias, mask, rows, S4, scale,
            P4, END > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        finish(o, lse, peak, total, tl.trans(out), rows, o_n, TOKENS, D, WIDTH)


@triton.jit
def _start(delta, o, g, start, stride, SIZE: tl.constexpr, TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """Leave behind what the softmax's gradient subtracts, and return an empty gradient of some queries, transposed."""
    if SIZE > 0:
        rows = start + tl.arange(0, SIZE)
        tl.store(delta + rows, row_delta(o, g, rows, stride, TOKENS, D, WIDTH), mask=rows < TOKENS)
    return tl.zeros((WIDTH, SIZE if SIZE > 0 else 16), tl.float32)


@triton.jit
def _tile(
    d_q, d_k, d_v, k, v, q, g, lse, delta, bias, mask, keys, start, scale,
    SIZE: tl.constexpr, EDGE: tl.constexpr, TOKENS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Add what some queries, the columns, and a tile of keys give to each other's gradients, but for the scale."""
    if SIZE > 0:
        queries = start + tl.arange(0, SIZE)
        peak = load_row(lse, queries, TOKENS) * 1.4426950408889634
        scores = tl.dot(k, tl.trans(q))
        scores = scale_and_add(scores, bias, mask, queries[None, :], keys[:, None], scale, TOKENS, HAS_BIAS, HAS_MASK)
        p = tl.exp2(scores - peak[None, :])
        if EDGE:
            p = tl.where((keys < TOKENS)[:, None], p, 0.0)
        d_v = tl.dot(p.to(g.dtype), g, d_v)
        d_p = tl.dot(v, tl.trans(g)) - load_row(delta, queries, TOKENS)[None, :]
        d_s = (p * d_p).to(q.dtype)
        d_k = tl.dot(d_s, q, d_k)
        d_q = tl.dot(tl.trans(k), d_s, d_q)
    return d_q, d_k, d_v


@triton.jit
def _tail(
    d_q, d_k, d_v, k, v, q, g, lse, delta, bias, mask, keys, start, scale,
    SIZE: tl.constexpr, TOKENS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Do as `_tile` does, with the keys as columns and all gradients transposed."""
    if SIZE > 0:
        queries = start + tl.arange(0, SIZE)
        peak = load_row(lse, queries, TOKENS) * 1.4426950408889634
        scores = tl.dot(q, tl.trans(k))
        scores = scale_and_add(scores, bias, mask, queries[:, None], keys[None, :], scale, TOKENS, HAS_BIAS, HAS_MASK)
        p = tl.where((keys < TOKENS)[None, :], tl.exp2(scores - peak[:, None]), 0.0)
        d_v = tl.dot(tl.trans(g), p.to(g.dtype), d_v)
        d_p = tl.dot(g, tl.trans(v)) - load_row(delta, queries, TOKENS)[:, None]
        d_s = (p * d_p).to(q.dtype)
        d_k = tl.dot(tl.trans(q), d_s, d_k)
        d_q = tl.dot(tl.trans(k), tl.trans(d_s), d_q)
    return d_q, d_k, d_v


@triton.jit
def _finish(
    into, d_q, start, stride, scale, SIZE: tl.constexpr, TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr
):
    if SIZE > 0:
        tile = tl.trans((d_q * scale).to(into.dtype.element_ty))
        store(into, tile, start + tl.arange(0, SIZE), stride, TOKENS, D, WIDTH)


@triton.jit
def whole_backward(
    d_out, qkv, o, lse, delta, bias, mask, d_qkv, g_f, g_n, g_h, s_f, s_n, s_3, s_h, o_f, o_n, o_h,
    frames, heads, windows, scale,
    TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr, P4: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    head = (tl.program_id(0) % heads).to(tl.int64)
    frame = (tl.program_id(0) // heads).to(tl.int64)
    q_head = qkv + frame * s_f + head * s_h
    k_head = q_head + s_3
    v_head = k_head + s_3  # no multiple of a stride, which may pass 32 bits
    g_head = d_out + frame * g_f + head * g_h
    o += frame * o_f + head * o_h
    into = d_qkv + (frame * TOKENS * 3 * heads + head) * D
    lse += (frame * heads + head) * TOKENS
    delta += (frame * heads + head) * TOKENS
    if HAS_BIAS:
        bias += head * TOKENS * TOKENS
    if HAS_MASK:
        mask += (frame % windows) * TOKENS * TOKENS
    S1: tl.constexpr = P0
    S2: tl.constexpr = S1 + P1
    S3: tl.constexpr = S2 + P2
    S4: tl.constexpr = S3 + P3
    TAIL: tl.constexpr = 0 < TOKENS % ROWS and TOKENS % ROWS <= 16
    FULL: tl.constexpr = TOKENS // ROWS * ROWS if TAIL else TOKENS
    EDGE: tl.constexpr = FULL % ROWS > 0
    q0, g0 = piece(q_head, g_head, s_n, g_n, 0, P0, TOKENS, D, WIDTH)
    q1, g1 = piece(q_head, g_head, s_n, g_n, S1, P1, TOKENS, D, WIDTH)
    q2, g2 = piece(q_head, g_head, s_n, g_n, S2, P2, TOKENS, D, WIDTH)
    q3, g3 = piece(q_head, g_head, s_n, g_n, S3, P3, TOKENS, D, WIDTH)
    q4, g4 = piece(q_head, g_head, s_n, g_n, S4, P4, TOKENS, D, WIDTH)
    d_q0 = _start(delta, o, g0, 0, o_n, P0, TOKENS, D, WIDTH)
    d_q1 = _start(delta, o, g1, S1, o_n, P1, TOKENS, D, WIDTH)
    d_q2 = _start(delta, o, g2, S2, o_n, P2, TOKENS, D, WIDTH)
    d_q3 = _start(delta, o, g3, S3, o_n, P3, TOKENS, D, WIDTH)
    d_q4 = _start(delta, o, g4, S4, o_n, P4, TOKENS, D, WIDTH)
    tl.debug_barrier()
    for first in range(0, FULL, ROWS):
        keys = first + tl.arange(0, ROWS)
        k, v = piece(k_head, v_head, s_n, s_n, first, ROWS, TOKENS, D, WIDTH)
        d_k = tl.zeros((ROWS, WIDTH), tl.float32)
        d_v = tl.zeros((ROWS, WIDTH), tl.float32)
        d_q0, d_k, d_v = _tile(
            d_q0, d_k, d_v, k, v, q0, g0, lse, delta, bias, mask, keys, 0, scale,
            P0, EDGE, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        d_q1, d_k, d_v = _tile(
            d_q1, d_k, d_v, k, v, q1, g1, lse, delta, bias, mask, keys, S1, scale,
            P1, EDGE, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        d_q2, d_k, d_v = _tile(
            d_q2, d_k, d_v, k, v, q2, g2, lse, delta, bias, mask, keys, S2, scale,
            P2, EDGE, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        d_q3, d_k, d_v = _tile(
            d_q3, d_k, d_v, k, v, q3, g3, lse, delta, bias, mask, keys, S3, scale,
            P3, EDGE, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        d_q4, d_k, d_v = _tile(
            d_q4, d_k, d_v, k, v, q4, g4, lse, delta, bias, mask, keys, S4, scale,
            P4, EDGE, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        store(into + heads * D, d_k * scale, keys, 3 * heads * D, TOKENS, D, WIDTH)
        store(into + 2 * heads * D, d_v, keys, 3 * heads * D, TOKENS, D, WIDTH)
    if TAIL:
        keys = FULL + tl.arange(0, 16)
        k, v = piece(k_head, v_head, s_n, s_n, FULL, 16, TOKENS, D, WIDTH)
        d_k = tl.zeros((WIDTH, 16), tl.float32)
        d_v = tl.zeros((WIDTH, 16), tl.float32)
        d_q0, d_k, d_v = _tail(
            d_q0, d_k, d_v, k, v, q0, g0, lse, delta, bias, mask, keys, 0, scale,
            P0, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        d_q1, d_k, d_v = _tail(
            d_q1, d_k, d_v, k, v, q1, g1, lse, delta, bias, mask, keys, S1, scale,
            P1, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        d_q2, d_k, d_v = _tail(
            d_q2, d_k, d_v, k, v, q2, g2, lse, delta, bias, mask, keys, S2, scale,
            P2, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        d_q3, d_k, d_v = _tail(
            d_q3, d_k, d_v, k, v, q3, g3, lse, delta, bias, mask, keys, S3, scale,
            P3, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        d_q4, d_k, d_v = _tail(
            d_q4, d_k, d_v, k, v, q4, g4, lse, delta, bias, mask, keys, S4, scale,
            P4, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        store(into + heads * D, tl.trans(d_k) * scale, keys, 3 * heads * D, TOKENS, D, WIDTH)
        store(into + 2 * heads * D, tl.trans(d_v), keys, 3 * heads * D, TOKENS, D, WIDTH)
    _finish(into, d_q0, 0, 3 * heads * D, scale, P0, TOKENS, D, WIDTH)
    _finish(into, d_q1, S1, 3 * heads * D, scale, P1, TOKENS, D, WIDTH)
    _finish(into, d_q2, S2, 3 * heads * D, scale, P2, TOKENS, D, WIDTH)
    _finish(into, d_q3, S3, 3 * heads * D, scale, P3, TOKENS, D, WIDTH)
    _finish(into, d_q4, S4, 3 * heads * D, scale, P4, TOKENS, D, WIDTH)
