"""Attend within frames of any length: a program owns one tile and walks over all of the other side.

It does so in blocks of COLUMNS rows and a smaller REST.
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
def streaming_forward(
    qkv, o, lse, bias, mask, s_f, s_n, s_3, s_h, o_f, o_n, o_h, frames, heads, windows, scale,
    TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, REST: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = (TOKENS + ROWS - 1) // ROWS
    FULL: tl.constexpr = TOKENS // COLUMNS * COLUMNS
    head = (tl.program_id(0) % heads).to(tl.int64)
    frame = (tl.program_id(0) // heads // TILES).to(tl.int64)
    rows = tl.program_id(0) // heads % TILES * ROWS + tl.arange(0, ROWS)
    q_head = qkv + frame * s_f + head * s_h
    k_head = q_head + s_3
    v_head = k_head + s_3  # no multiple of a stride, which may pass 32 bits
    if HAS_BIAS:
        bias += head * TOKENS * TOKENS
    if HAS_MASK:
        mask += (frame % windows) * TOKENS * TOKENS
    q = load(q_head, rows, s_n, TOKENS, D, WIDTH)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, FULL, COLUMNS):
        k, v = piece(k_head, v_head, s_n, s_n, start, COLUMNS, TOKENS, D, WIDTH)
        peak, total, out = attend(
            peak, total, out, q, k, v, bias, mask, rows, start, scale,
            COLUMNS, False, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
    k, v = piece(k_head, v_head, s_n, s_n, FULL, REST, TOKENS, D, WIDTH)
    peak, total, out = attend(
        peak, total, out, q, k, v, bias, mask, rows, FULL, scale,
        REST, True, TOKENS, HAS_BIAS, HAS_MASK,
    )  # fmt: skip
    o += frame * o_f + head * o_h
    finish(o, lse + (frame * heads + head) * TOKENS, peak, total, out, rows, o_n, TOKENS, D, WIDTH)


@triton.jit
def streaming_backward(
    d_out, qkv, o, lse, delta, bias, mask, d_qkv, g_f, g_n, g_h, s_f, s_n, s_3, s_h, o_f, o_n, o_h,
    frames, heads, windows, scale,
    OF_KEYS: tl.constexpr,
    TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, REST: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = (TOKENS + ROWS - 1) // ROWS
    FULL: tl.constexpr = TOKENS // COLUMNS * COLUMNS
    head = (tl.program_id(0) % heads).to(tl.int64)
    frame = (tl.program_id(0) // heads // TILES).to(tl.int64)
    first = tl.program_id(0) // heads % TILES * ROWS
    rows = first + tl.arange(0, ROWS)
    q_head = qkv + frame * s_f + head * s_h
    k_head = q_head + s_3
    v_head = k_head + s_3  # no multiple of a stride, which may pass 32 bits
    g_head = d_out + frame * g_f + head * g_h
    into = d_qkv + (frame * TOKENS * 3 * heads + head) * D
    lse += (frame * heads + head) * TOKENS
    delta += (frame * heads + head) * TOKENS
    if HAS_BIAS:
        bias += head * TOKENS * TOKENS
    if HAS_MASK:
        mask += (frame % windows) * TOKENS * TOKENS
    if OF_KEYS:
        k, v = piece(k_head, v_head, s_n, s_n, first, ROWS, TOKENS, D, WIDTH)
        d_k = tl.zeros((ROWS, WIDTH), tl.float32)
        d_v = tl.zeros((ROWS, WIDTH), tl.float32)
        for start in range(0, FULL, COLUMNS):
            q, g = piece(q_head, g_head, s_n, g_n, start, COLUMNS, TOKENS, D, WIDTH)
            d_k, d_v = d_key(
                d_k, d_v, k, v, q, g, lse, delta, bias, mask, rows, start, scale,
                COLUMNS, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
        q, g = piece(q_head, g_head, s_n, g_n, FULL, REST, TOKENS, D, WIDTH)
        d_k, d_v = d_key(
            d_k, d_v, k, v, q, g, lse, delta, bias, mask, rows, FULL, scale,
            REST, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        store(into + heads * D, d_k * scale, rows, 3 * heads * D, TOKENS, D, WIDTH)
        store(into + 2 * heads * D, d_v, rows, 3 * heads * D, TOKENS, D, WIDTH)
    else:
        q, g = piece(q_head, g_head, s_n, g_n, first, ROWS, TOKENS, D, WIDTH)
        own = row_delta(o + frame * o_f + head * o_h, g, rows, o_n, TOKENS, D, WIDTH)
        tl.store(delta + rows, own, mask=rows < TOKENS)
        peak = load_row(lse, rows, TOKENS) * 1.4426950408889634
        d_q = tl.zeros((ROWS, WIDTH), tl.float32)
        for start in range(0, FULL, COLUMNS):
            k, v = piece(k_head, v_head, s_n, s_n, start, COLUMNS, TOKENS, D, WIDTH)
            d_q = d_query(
                d_q, q, g, k, v, peak, own, bias, mask, rows, start, scale,
                COLUMNS, False, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
        k, v = piece(k_head, v_head, s_n, s_n, FULL, REST, TOKENS, D, WIDTH)
        d_q = d_query(
            d_q, q, g, k, v, peak, own, bias, mask, rows, FULL, scale,
            REST, True, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        store(into, d_q * scale, rows, 3 * heads * D, TOKENS, D, WIDTH)
