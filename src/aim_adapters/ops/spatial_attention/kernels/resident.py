"""Attention within frames of up to a few hundred tokens, one side of a head staying in shared memory.

A program keeps keys and values, or queries and gradients of the output, in up to five pieces whose sizes are powers of
two (SIZE_0 to SIZE_4, 0 where there is none), and walks over the tiles of the other side, BLOCK_ROWS rows each.
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
def resident_forward(
    qkv_ptr, out_ptr, lse_ptr, bias_ptr, mask_ptr,
    stride_qkv_frame, stride_qkv_token, stride_qkv_q_to_k, stride_qkv_head,
    stride_out_frame, stride_out_token, stride_out_head,
    num_frames, num_heads, num_windows, scale,
    TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    SIZE_0: tl.constexpr, SIZE_1: tl.constexpr, SIZE_2: tl.constexpr, SIZE_3: tl.constexpr, SIZE_4: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    # For every frame and head, by the online softmax:
    #
    #     s   = scale * q k^T + bias[head] + mask[frame % W]
    #     out = softmax(s) v,  lse = log(sum(exp(s), along the keys))
    #
    # qkv is [F, N, 3, H, d], out [F, N, H, d], lse float32 [F, H, N], bias [H, N, N], mask [W, N, N]. A program
    # computes one frame and head: it reads all keys and values once, then BLOCK_ROWS queries at a time.
    # Program p = frame * H + head.
    head = (tl.program_id(0) % num_heads).to(tl.int64)
    frame = (tl.program_id(0) // num_heads).to(tl.int64)
    q_ptr = qkv_ptr + frame * stride_qkv_frame + head * stride_qkv_head
    k_ptr = q_ptr + stride_qkv_q_to_k
    v_ptr = k_ptr + stride_qkv_q_to_k  # no multiple of a stride, which may pass 32 bits
    out_ptr += frame * stride_out_frame + head * stride_out_head
    lse_ptr += (frame * num_heads + head) * TOKENS
    if HAS_BIAS:
        bias_ptr += head * TOKENS * TOKENS
    if HAS_MASK:
        mask_ptr += (frame % num_windows) * TOKENS * TOKENS
    START_1: tl.constexpr = SIZE_0
    START_2: tl.constexpr = START_1 + SIZE_1
    START_3: tl.constexpr = START_2 + SIZE_2
    START_4: tl.constexpr = START_3 + SIZE_3
    END: tl.constexpr = START_4 + SIZE_4
    # Tiles of keys and values, [SIZE_i, BLOCK_DIM] each.
    k_0, v_0 = load_two(k_ptr, v_ptr, stride_qkv_token, stride_qkv_token, 0, SIZE_0, TOKENS, HEAD_DIM, BLOCK_DIM)
    k_1, v_1 = load_two(k_ptr, v_ptr, stride_qkv_token, stride_qkv_token, START_1, SIZE_1, TOKENS, HEAD_DIM, BLOCK_DIM)
    k_2, v_2 = load_two(k_ptr, v_ptr, stride_qkv_token, stride_qkv_token, START_2, SIZE_2, TOKENS, HEAD_DIM, BLOCK_DIM)
    k_3, v_3 = load_two(k_ptr, v_ptr, stride_qkv_token, stride_qkv_token, START_3, SIZE_3, TOKENS, HEAD_DIM, BLOCK_DIM)
    k_4, v_4 = load_two(k_ptr, v_ptr, stride_qkv_token, stride_qkv_token, START_4, SIZE_4, TOKENS, HEAD_DIM, BLOCK_DIM)
    for first in range(0, TOKENS, BLOCK_ROWS):
        rows = first + tl.arange(0, BLOCK_ROWS)
        q = load(q_ptr, rows, stride_qkv_token, TOKENS, HEAD_DIM, BLOCK_DIM)
        row_max = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
        row_sum = tl.zeros((BLOCK_ROWS,), tl.float32)
        acc = tl.zeros((BLOCK_ROWS, BLOCK_DIM), tl.float32)
        row_max, row_sum, acc = add_keys(
            row_max, row_sum, acc, q, k_0, v_0, bias_ptr, mask_ptr, rows, 0, scale,
            SIZE_0, START_1 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        row_max, row_sum, acc = add_keys(
            row_max, row_sum, acc, q, k_1, v_1, bias_ptr, mask_ptr, rows, START_1, scale,
            SIZE_1, START_2 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        row_max, row_sum, acc = add_keys(
            row_max, row_sum, acc, q, k_2, v_2, bias_ptr, mask_ptr, rows, START_2, scale,
            SIZE_2, START_3 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        row_max, row_sum, acc = add_keys(
            row_max, row_sum, acc, q, k_3, v_3, bias_ptr, mask_ptr, rows, START_3, scale,
            SIZE_3, START_4 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        row_max, row_sum, acc = add_keys(
            row_max, row_sum, acc, q, k_4, v_4, bias_ptr, mask_ptr, rows, START_4, scale,
            SIZE_4, END > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        finish(out_ptr, lse_ptr, row_max, row_sum, acc, rows, stride_out_token, TOKENS, HEAD_DIM, BLOCK_DIM)


@triton.jit
def _save_delta(
    delta_ptr, out_ptr, d_out, start, stride_out_token,
    SIZE: tl.constexpr, TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    # Write delta[rows] = sum(out[rows] * d_out, along d) of SIZE rows from token `start` on.
    if SIZE > 0:
        rows = start + tl.arange(0, SIZE)
        rows_delta_ptr = delta_ptr + rows
        delta = compute_delta(out_ptr, d_out, rows, stride_out_token, TOKENS, HEAD_DIM, BLOCK_DIM)
        tl.store(rows_delta_ptr, delta, mask=rows < TOKENS)


@triton.jit
def resident_backward(
    d_out_ptr, qkv_ptr, out_ptr, lse_ptr, delta_ptr, bias_ptr, mask_ptr, d_qkv_ptr,
    stride_d_out_frame, stride_d_out_token, stride_d_out_head,
    stride_qkv_frame, stride_qkv_token, stride_qkv_q_to_k, stride_qkv_head,
    stride_out_frame, stride_out_token, stride_out_head,
    num_frames, num_heads, num_windows, scale,
    TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    SIZE_0: tl.constexpr, SIZE_1: tl.constexpr, SIZE_2: tl.constexpr, SIZE_3: tl.constexpr, SIZE_4: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    # For every frame and head, with p = exp(s - lse):
    #
    #     delta = sum(out * d_out, along d)                        [N], float32
    #     d_v   = p^T d_out
    #     d_k   = scale * (p * (d_out v^T - delta))^T q
    #     d_q   = scale * (p * (d_out v^T - delta)) k
    #
    # d_qkv is [F, N, 3, H, d], contiguous; delta [F, H, N]; other shapes as in the forward pass. Two programs compute
    # one frame and head: the even one reads all queries and gradients of the output once, then makes d_k and d_v of
    # BLOCK_ROWS keys at a time; the odd one reads all keys and values once, then makes d_q of BLOCK_ROWS queries at a
    # time. Sums over the other side are float32. Program p = (2 * frame + odd) * H + head.
    head = (tl.program_id(0) % num_heads).to(tl.int64)
    frame = (tl.program_id(0) // num_heads // 2).to(tl.int64)
    q_ptr = qkv_ptr + frame * stride_qkv_frame + head * stride_qkv_head
    k_ptr = q_ptr + stride_qkv_q_to_k
    v_ptr = k_ptr + stride_qkv_q_to_k  # no multiple of a stride, which may pass 32 bits
    head_d_out_ptr = d_out_ptr + frame * stride_d_out_frame + head * stride_d_out_head
    out_ptr += frame * stride_out_frame + head * stride_out_head
    # d_qkv[frame, 0, 0, head, :], from where its tokens are 3 * H * d apart, and its d_q, d_k and d_v H * d.
    d_q_ptr = d_qkv_ptr + (frame * TOKENS * 3 * num_heads + head) * HEAD_DIM
    lse_ptr += (frame * num_heads + head) * TOKENS
    delta_ptr += (frame * num_heads + head) * TOKENS
    if HAS_BIAS:
        bias_ptr += head * TOKENS * TOKENS
    if HAS_MASK:
        mask_ptr += (frame % num_windows) * TOKENS * TOKENS
    START_1: tl.constexpr = SIZE_0
    START_2: tl.constexpr = START_1 + SIZE_1
    START_3: tl.constexpr = START_2 + SIZE_2
    START_4: tl.constexpr = START_3 + SIZE_3
    END: tl.constexpr = START_4 + SIZE_4
    # Neighboring programs make the gradients of keys and values, and of queries: they read the same.
    if tl.program_id(0) // num_heads % 2 == 0:
        # Tiles of queries and gradients of the output, [SIZE_i, BLOCK_DIM] each.
        q_0, d_out_0 = load_two(
            q_ptr, head_d_out_ptr, stride_qkv_token, stride_d_out_token, 0, SIZE_0, TOKENS, HEAD_DIM, BLOCK_DIM
        )
        q_1, d_out_1 = load_two(
            q_ptr, head_d_out_ptr, stride_qkv_token, stride_d_out_token, START_1, SIZE_1, TOKENS, HEAD_DIM, BLOCK_DIM
        )
        q_2, d_out_2 = load_two(
            q_ptr, head_d_out_ptr, stride_qkv_token, stride_d_out_token, START_2, SIZE_2, TOKENS, HEAD_DIM, BLOCK_DIM
        )
        q_3, d_out_3 = load_two(
            q_ptr, head_d_out_ptr, stride_qkv_token, stride_d_out_token, START_3, SIZE_3, TOKENS, HEAD_DIM, BLOCK_DIM
        )
        q_4, d_out_4 = load_two(
            q_ptr, head_d_out_ptr, stride_qkv_token, stride_d_out_token, START_4, SIZE_4, TOKENS, HEAD_DIM, BLOCK_DIM
        )
        # Through memory, which only this program reads: kept in registers, too many would be taken for good.
        _save_delta(delta_ptr, out_ptr, d_out_0, 0, stride_out_token, SIZE_0, TOKENS, HEAD_DIM, BLOCK_DIM)
        _save_delta(delta_ptr, out_ptr, d_out_1, START_1, stride_out_token, SIZE_1, TOKENS, HEAD_DIM, BLOCK_DIM)
        _save_delta(delta_ptr, out_ptr, d_out_2, START_2, stride_out_token, SIZE_2, TOKENS, HEAD_DIM, BLOCK_DIM)
        _save_delta(delta_ptr, out_ptr, d_out_3, START_3, stride_out_token, SIZE_3, TOKENS, HEAD_DIM, BLOCK_DIM)
        _save_delta(delta_ptr, out_ptr, d_out_4, START_4, stride_out_token, SIZE_4, TOKENS, HEAD_DIM, BLOCK_DIM)
        tl.debug_barrier()
        for first in range(0, TOKENS, BLOCK_ROWS):
            rows = first + tl.arange(0, BLOCK_ROWS)
            k, v = load_two(
                k_ptr, v_ptr, stride_qkv_token, stride_qkv_token, first, BLOCK_ROWS, TOKENS, HEAD_DIM, BLOCK_DIM
            )
            d_k = tl.zeros((BLOCK_ROWS, BLOCK_DIM), tl.float32)
            d_v = tl.zeros((BLOCK_ROWS, BLOCK_DIM), tl.float32)
            d_k, d_v = add_to_d_k_and_d_v(
                d_k, d_v, k, v, q_0, d_out_0, lse_ptr, delta_ptr, bias_ptr, mask_ptr, rows, 0, scale,
                SIZE_0, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_k, d_v = add_to_d_k_and_d_v(
                d_k, d_v, k, v, q_1, d_out_1, lse_ptr, delta_ptr, bias_ptr, mask_ptr, rows, START_1, scale,
                SIZE_1, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_k, d_v = add_to_d_k_and_d_v(
                d_k, d_v, k, v, q_2, d_out_2, lse_ptr, delta_ptr, bias_ptr, mask_ptr, rows, START_2, scale,
                SIZE_2, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_k, d_v = add_to_d_k_and_d_v(
                d_k, d_v, k, v, q_3, d_out_3, lse_ptr, delta_ptr, bias_ptr, mask_ptr, rows, START_3, scale,
                SIZE_3, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_k, d_v = add_to_d_k_and_d_v(
                d_k, d_v, k, v, q_4, d_out_4, lse_ptr, delta_ptr, bias_ptr, mask_ptr, rows, START_4, scale,
                SIZE_4, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_k_ptr = d_q_ptr + num_heads * HEAD_DIM
            store(d_k_ptr, d_k * scale, rows, 3 * num_heads * HEAD_DIM, TOKENS, HEAD_DIM, BLOCK_DIM)
            d_v_ptr = d_q_ptr + 2 * num_heads * HEAD_DIM
            store(d_v_ptr, d_v, rows, 3 * num_heads * HEAD_DIM, TOKENS, HEAD_DIM, BLOCK_DIM)
    else:
        # Tiles of keys and values, [SIZE_i, BLOCK_DIM] each.
        k_0, v_0 = load_two(k_ptr, v_ptr, stride_qkv_token, stride_qkv_token, 0, SIZE_0, TOKENS, HEAD_DIM, BLOCK_DIM)
        k_1, v_1 = load_two(
            k_ptr, v_ptr, stride_qkv_token, stride_qkv_token, START_1, SIZE_1, TOKENS, HEAD_DIM, BLOCK_DIM
        )
        k_2, v_2 = load_two(
            k_ptr, v_ptr, stride_qkv_token, stride_qkv_token, START_2, SIZE_2, TOKENS, HEAD_DIM, BLOCK_DIM
        )
        k_3, v_3 = load_two(
            k_ptr, v_ptr, stride_qkv_token, stride_qkv_token, START_3, SIZE_3, TOKENS, HEAD_DIM, BLOCK_DIM
        )
        k_4, v_4 = load_two(
            k_ptr, v_ptr, stride_qkv_token, stride_qkv_token, START_4, SIZE_4, TOKENS, HEAD_DIM, BLOCK_DIM
        )
        for first in range(0, TOKENS, BLOCK_ROWS):
            rows = first + tl.arange(0, BLOCK_ROWS)
            q, d_out = load_two(
                q_ptr, head_d_out_ptr, stride_qkv_token, stride_d_out_token, first,
                BLOCK_ROWS, TOKENS, HEAD_DIM, BLOCK_DIM,
            )  # fmt: skip
            delta = compute_delta(out_ptr, d_out, rows, stride_out_token, TOKENS, HEAD_DIM, BLOCK_DIM)
            lse_log2 = load_vector(lse_ptr, rows, TOKENS) * LOG2_E
            d_q = tl.zeros((BLOCK_ROWS, BLOCK_DIM), tl.float32)
            d_q = add_to_d_q(
                d_q, q, d_out, k_0, v_0, lse_log2, delta, bias_ptr, mask_ptr, rows, 0, scale,
                SIZE_0, START_1 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_q = add_to_d_q(
                d_q, q, d_out, k_1, v_1, lse_log2, delta, bias_ptr, mask_ptr, rows, START_1, scale,
                SIZE_1, START_2 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_q = add_to_d_q(
                d_q, q, d_out, k_2, v_2, lse_log2, delta, bias_ptr, mask_ptr, rows, START_2, scale,
                SIZE_2, START_3 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_q = add_to_d_q(
                d_q, q, d_out, k_3, v_3, lse_log2, delta, bias_ptr, mask_ptr, rows, START_3, scale,
                SIZE_3, START_4 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_q = add_to_d_q(
                d_q, q, d_out, k_4, v_4, lse_log2, delta, bias_ptr, mask_ptr, rows, START_4, scale,
                SIZE_4, END > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            store(d_q_ptr, d_q * scale, rows, 3 * num_heads * HEAD_DIM, TOKENS, HEAD_DIM, BLOCK_DIM)
