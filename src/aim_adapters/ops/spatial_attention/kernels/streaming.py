"""Attention within frames of any length: a program owns one tile and walks over all of the other side.

It does so in blocks of BLOCK_COLUMNS rows and a last, smaller one of REMAINDER rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aim_adapters.ops.spatial_attention.kernels.tile_math import (
    LOG2_E,
    add_keys,
    add_to_d_k_and_d_v,
    add_to_d_q,
    compute_delta,
    finish,
    load,
    load_two,
    load_vector,
    store,
)


@triton.jit
def streaming_forward(
    qkv_ptr, out_ptr, lse_ptr, bias_ptr, mask_ptr,
    stride_qkv_frame, stride_qkv_token, stride_qkv_q_to_k, stride_qkv_head,
    stride_out_frame, stride_out_token, stride_out_head,
    num_frames, num_heads, num_windows, scale,
    TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr, REMAINDER: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    # For every frame and head, by the online softmax:
    #
    #     s   = scale * q k^T + bias[head] + mask[frame % W]
    #     out = softmax(s) v,  lse = log(sum(exp(s), along the keys))
    #
    # qkv is [F, N, 3, H, d], out [F, N, H, d], lse float32 [F, H, N], bias [H, N, N], mask [W, N, N]. A program
    # computes BLOCK_ROWS queries of one frame and head, over all keys and values in turn.
    # Program p = (frame * TILES + tile) * H + head.
    TILES: tl.constexpr = (TOKENS + BLOCK_ROWS - 1) // BLOCK_ROWS
    FULL: tl.constexpr = TOKENS // BLOCK_COLUMNS * BLOCK_COLUMNS
    head = (tl.program_id(0) % num_heads).to(tl.int64)
    frame = (tl.program_id(0) // num_heads // TILES).to(tl.int64)
    rows = tl.program_id(0) // num_heads % TILES * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    q_ptr = qkv_ptr + frame * stride_qkv_frame + head * stride_qkv_head
    k_ptr = q_ptr + stride_qkv_q_to_k
    v_ptr = k_ptr + stride_qkv_q_to_k  # no multiple of a stride, which may pass 32 bits
    if HAS_BIAS:
        bias_ptr += head * TOKENS * TOKENS
    if HAS_MASK:
        mask_ptr += (frame % num_windows) * TOKENS * TOKENS
    q = load(q_ptr, rows, stride_qkv_token, TOKENS, HEAD_DIM, BLOCK_DIM)
    row_max = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
    row_sum = tl.zeros((BLOCK_ROWS,), tl.float32)
    acc = tl.zeros((BLOCK_ROWS, BLOCK_DIM), tl.float32)
    for start in range(0, FULL, BLOCK_COLUMNS):
        k, v = load_two(
            k_ptr, v_ptr, stride_qkv_token, stride_qkv_token, start, BLOCK_COLUMNS, TOKENS, HEAD_DIM, BLOCK_DIM
        )
        row_max, row_sum, acc = add_keys(
            row_max, row_sum, acc, q, k, v, bias_ptr, mask_ptr, rows, start, scale,
            BLOCK_COLUMNS, False, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
    k, v = load_two(k_ptr, v_ptr, stride_qkv_token, stride_qkv_token, FULL, REMAINDER, TOKENS, HEAD_DIM, BLOCK_DIM)
    row_max, row_sum, acc = add_keys(
        row_max, row_sum, acc, q, k, v, bias_ptr, mask_ptr, rows, FULL, scale,
        REMAINDER, True, TOKENS, HAS_BIAS, HAS_MASK,
    )  # fmt: skip
    out_ptr += frame * stride_out_frame + head * stride_out_head
    lse_ptr += (frame * num_heads + head) * TOKENS
    finish(out_ptr, lse_ptr, row_max, row_sum, acc, rows, stride_out_token, TOKENS, HEAD_DIM, BLOCK_DIM)


@triton.jit
def streaming_backward(
    d_out_ptr, qkv_ptr, out_ptr, lse_ptr, delta_ptr, bias_ptr, mask_ptr, d_qkv_ptr,
    stride_d_out_frame, stride_d_out_token, stride_d_out_head,
    stride_qkv_frame, stride_qkv_token, stride_qkv_q_to_k, stride_qkv_head,
    stride_out_frame, stride_out_token, stride_out_head,
    num_frames, num_heads, num_windows, scale,
    OF_KEYS: tl.constexpr,
    TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr, REMAINDER: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    # For every frame and head, in two launches: without OF_KEYS
    #
    #     delta = sum(out * d_out, along d)                    [N], float32, written to memory
    #     d_q   = scale * (p * (d_out v^T - delta)) k          p = exp(s - lse)
    #
    # of BLOCK_ROWS queries over all keys and values in turn; then with OF_KEYS, which reads delta,
    #
    #     d_v = p^T d_out
    #     d_k = scale * (p * (d_out v^T - delta))^T q
    #
    # of BLOCK_ROWS keys over all queries and gradients in turn. Sums over the other side are float32.
    # d_qkv is [F, N, 3, H, d], contiguous; delta [F, H, N]; other shapes and the programs as in the forward pass.
    TILES: tl.constexpr = (TOKENS + BLOCK_ROWS - 1) // BLOCK_ROWS
    FULL: tl.constexpr = TOKENS // BLOCK_COLUMNS * BLOCK_COLUMNS
    head = (tl.program_id(0) % num_heads).to(tl.int64)
    frame = (tl.program_id(0) // num_heads // TILES).to(tl.int64)
    first = tl.program_id(0) // num_heads % TILES * BLOCK_ROWS
    rows = first + tl.arange(0, BLOCK_ROWS)
    q_ptr = qkv_ptr + frame * stride_qkv_frame + head * stride_qkv_head
    k_ptr = q_ptr + stride_qkv_q_to_k
    v_ptr = k_ptr + stride_qkv_q_to_k  # no multiple of a stride, which may pass 32 bits
    head_d_out_ptr = d_out_ptr + frame * stride_d_out_frame + head * stride_d_out_head
    # d_qkv[frame, 0, 0, head, :], from where its tokens are 3 * H * d apart, and its d_q, d_k and d_v H * d.
    d_q_ptr = d_qkv_ptr + (frame * TOKENS * 3 * num_heads + head) * HEAD_DIM
    lse_ptr += (frame * num_heads + head) * TOKENS
    delta_ptr += (frame * num_heads + head) * TOKENS
    if HAS_BIAS:
        bias_ptr += head * TOKENS * TOKENS
    if HAS_MASK:
        mask_ptr += (frame % num_windows) * TOKENS * TOKENS
    if OF_KEYS:
        k, v = load_two(
            k_ptr, v_ptr, stride_qkv_token, stride_qkv_token, first, BLOCK_ROWS, TOKENS, HEAD_DIM, BLOCK_DIM
        )
        d_k = tl.zeros((BLOCK_ROWS, BLOCK_DIM), tl.float32)
        d_v = tl.zeros((BLOCK_ROWS, BLOCK_DIM), tl.float32)
        for start in range(0, FULL, BLOCK_COLUMNS):
            q, d_out = load_two(
                q_ptr, head_d_out_ptr, stride_qkv_token, stride_d_out_token, start,
                BLOCK_COLUMNS, TOKENS, HEAD_DIM, BLOCK_DIM,
            )  # fmt: skip
            d_k, d_v = add_to_d_k_and_d_v(
                d_k, d_v, k, v, q, d_out, lse_ptr, delta_ptr, bias_ptr, mask_ptr, rows, start, scale,
                BLOCK_COLUMNS, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
        q, d_out = load_two(
            q_ptr, head_d_out_ptr, stride_qkv_token, stride_d_out_token, FULL, REMAINDER, TOKENS, HEAD_DIM, BLOCK_DIM
        )
        d_k, d_v = add_to_d_k_and_d_v(
            d_k, d_v, k, v, q, d_out, lse_ptr, delta_ptr, bias_ptr, mask_ptr, rows, FULL, scale,
            REMAINDER, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        d_k_ptr = d_q_ptr + num_heads * HEAD_DIM
        store(d_k_ptr, d_k * scale, rows, 3 * num_heads * HEAD_DIM, TOKENS, HEAD_DIM, BLOCK_DIM)
        d_v_ptr = d_q_ptr + 2 * num_heads * HEAD_DIM
        store(d_v_ptr, d_v, rows, 3 * num_heads * HEAD_DIM, TOKENS, HEAD_DIM, BLOCK_DIM)
    else:
        q, d_out = load_two(
            q_ptr, head_d_out_ptr, stride_qkv_token, stride_d_out_token, first, BLOCK_ROWS, TOKENS, HEAD_DIM, BLOCK_DIM
        )
        head_out_ptr = out_ptr + frame * stride_out_frame + head * stride_out_head
        delta = compute_delta(head_out_ptr, d_out, rows, stride_out_token, TOKENS, HEAD_DIM, BLOCK_DIM)
        tl.store(delta_ptr + rows, delta, mask=rows < TOKENS)
        lse_log2 = load_vector(lse_ptr, rows, TOKENS) * LOG2_E
        d_q = tl.zeros((BLOCK_ROWS, BLOCK_DIM), tl.float32)
        for start in range(0, FULL, BLOCK_COLUMNS):
            k, v = load_two(
                k_ptr, v_ptr, stride_qkv_token, stride_qkv_token, start, BLOCK_COLUMNS, TOKENS, HEAD_DIM, BLOCK_DIM
            )
            d_q = add_to_d_q(
                d_q, q, d_out, k, v, lse_log2, delta, bias_ptr, mask_ptr, rows, start, scale,
                BLOCK_COLUMNS, False, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
        k, v = load_two(k_ptr, v_ptr, stride_qkv_token, stride_qkv_token, FULL, REMAINDER, TOKENS, HEAD_DIM, BLOCK_DIM)
        d_q = add_to_d_q(
            d_q, q, d_out, k, v, lse_log2, delta, bias_ptr, mask_ptr, rows, FULL, scale,
            REMAINDER, True, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        store(d_q_ptr, d_q * scale, rows, 3 * num_heads * HEAD_DIM, TOKENS, HEAD_DIM, BLOCK_DIM)
