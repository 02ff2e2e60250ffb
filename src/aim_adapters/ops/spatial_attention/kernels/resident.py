"""Attend within frames of up to a few hundred tokens, one side of a head staying in shared memory.

A program keeps keys and values, or queries and the gradients of what came of them, in up to five pieces whose sizes
are powers of two, and walks over the tiles of the other side.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aim_adapters.ops.spatial_attention.kernels.parts import (
    attend,
    d_key,
    d_query,
    finish,
    load,
    load_row,
    piece,
    row_delta,
    store,
)


@triton.jit
def resident_forward(
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
    k0, v0 = piece(k_head, v_head, s_n, s_n, 0, P0, TOKENS, D, WIDTH)
    k1, v1 = piece(k_head, v_head, s_n, s_n, S1, P1, TOKENS, D, WIDTH)
    k2, v2 = piece(k_head, v_head, s_n, s_n, S2, P2, TOKENS, D, WIDTH)
    k3, v3 = piece(k_head, v_head, s_n, s_n, S3, P3, TOKENS, D, WIDTH)
    k4, v4 = piece(k_head, v_head, s_n, s_n, S4, P4, TOKENS, D, WIDTH)
    for first in range(0, TOKENS, ROWS):
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


@triton.jit
def _save_delta(
    delta, o, g, start, stride, SIZE: tl.constexpr, TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr
):
    if SIZE > 0:
        rows = start + tl.arange(0, SIZE)
        tl.store(delta + rows, row_delta(o, g, rows, stride, TOKENS, D, WIDTH), mask=rows < TOKENS)


@triton.jit
def resident_backward(
    d_out, qkv, o, lse, delta, bias, mask, d_qkv, g_f, g_n, g_h, s_f, s_n, s_3, s_h, o_f, o_n, o_h,
    frames, heads, windows, scale,
    TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr, P4: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    head = (tl.program_id(0) % heads).to(tl.int64)
    frame = (tl.program_id(0) // heads // 2).to(tl.int64)
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
    END: tl.constexpr = S4 + P4
    # Neighboring programs make the gradients of keys and values, and of queries: they read the same.
    if tl.program_id(0) // heads % 2 == 0:
        q0, g0 = piece(q_head, g_head, s_n, g_n, 0, P0, TOKENS, D, WIDTH)
        q1, g1 = piece(q_head, g_head, s_n, g_n, S1, P1, TOKENS, D, WIDTH)
        q2, g2 = piece(q_head, g_head, s_n, g_n, S2, P2, TOKENS, D, WIDTH)
        q3, g3 = piece(q_head, g_head, s_n, g_n, S3, P3, TOKENS, D, WIDTH)
        q4, g4 = piece(q_head, g_head, s_n, g_n, S4, P4, TOKENS, D, WIDTH)
        # Through memory, which only this program reads: kept in registers, too many would be taken for good.
        _save_delta(delta, o, g0, 0, o_n, P0, TOKENS, D, WIDTH)
        _save_delta(delta, o, g1, S1, o_n, P1, TOKENS, D, WIDTH)
        _save_delta(delta, o, g2, S2, o_n, P2, TOKENS, D, WIDTH)
        _save_delta(delta, o, g3, S3, o_n, P3, TOKENS, D, WIDTH)
        _save_delta(delta, o, g4, S4, o_n, P4, TOKENS, D, WIDTH)
        tl.debug_barrier()
        for first in range(0, TOKENS, ROWS):
            rows = first + tl.arange(0, ROWS)
            k, v = piece(k_head, v_head, s_n, s_n, first, ROWS, TOKENS, D, WIDTH)
            d_k = tl.zeros((ROWS, WIDTH), tl.float32)
            d_v = tl.zeros((ROWS, WIDTH), tl.float32)
            d_k, d_v = d_key(
                d_k, d_v, k, v, q0, g0, lse, delta, bias, mask, rows, 0, scale,
                P0, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_k, d_v = d_key(
                d_k, d_v, k, v, q1, g1, lse, delta, bias, mask, rows, S1, scale,
                P1, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_k, d_v = d_key(
                d_k, d_v, k, v, q2, g2, lse, delta, bias, mask, rows, S2, scale,
                P2, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_k, d_v = d_key(
                d_k, d_v, k, v, q3, g3, lse, delta, bias, mask, rows, S3, scale,
                P3, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_k, d_v = d_key(
                d_k, d_v, k, v, q4, g4, lse, delta, bias, mask, rows, S4, scale,
                P4, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            store(into + heads * D, d_k * scale, rows, 3 * heads * D, TOKENS, D, WIDTH)
            store(into + 2 * heads * D, d_v, rows, 3 * heads * D, TOKENS, D, WIDTH)
    else:
        k0, v0 = piece(k_head, v_head, s_n, s_n, 0, P0, TOKENS, D, WIDTH)
        k1, v1 = piece(k_head, v_head, s_n, s_n, S1, P1, TOKENS, D, WIDTH)
        k2, v2 = piece(k_head, v_head, s_n, s_n, S2, P2, TOKENS, D, WIDTH)
        k3, v3 = piece(k_head, v_head, s_n, s_n, S3, P3, TOKENS, D, WIDTH)
        k4, v4 = piece(k_head, v_head, s_n, s_n, S4, P4, TOKENS, D, WIDTH)
        for first in range(0, TOKENS, ROWS):
            rows = first + tl.arange(0, ROWS)
            q, g = piece(q_head, g_head, s_n, g_n, first, ROWS, TOKENS, D, WIDTH)
            own = row_delta(o, g, rows, o_n, TOKENS, D, WIDTH)
            peak = load_row(lse, rows, TOKENS) * 1.4426950408889634
            d_q = tl.zeros((ROWS, WIDTH), tl.float32)
            d_q = d_query(
                d_q, q, g, k0, v0, peak, own, bias, mask, rows, 0, scale,
                P0, S1 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_q = d_query(
                d_q, q, g, k1, v1, peak, own, bias, mask, rows, S1, scale,
                P1, S2 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_q = d_query(
                d_q, q, g, k2, v2, peak, own, bias, mask, rows, S2, scale,
                P2, S3 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_q = d_query(
                d_q, q, g, k3, v3, peak, own, bias, mask, rows, S3, scale,
                P3, S4 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_q = d_query(
                d_q, q, g, k4, v4, peak, own, bias, mask, rows, S4, scale,
                P4, END > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            store(into, d_q * scale, rows, 3 * heads * D, TOKENS, D, WIDTH)
