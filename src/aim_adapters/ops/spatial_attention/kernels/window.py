"""Attention within windows of up to 64 tokens: one tile holds a window, so a backward pass makes all three gradients.

A program goes through the same head and window of FRAMES frames, so that bias, mask and index are read once for all.
With an index the rows of a tile lie anywhere in a frame: shifting, cutting and putting together cost no copies.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aim_adapters.ops.spatial_attention.kernels.tile_math import LOG2_E, load, scale_and_add, store


@triton.jit
def _first_window(
    index_ptr, num_heads, num_windows,
    TOKENS: tl.constexpr, BLOCK_ROWS: tl.constexpr, FRAMES: tl.constexpr, HAS_INDEX: tl.constexpr,
):  # fmt: skip
    # Return the head, the window and the first frame of a program; where in a sequence the rows of its tile lie,
    # [BLOCK_ROWS], and how many tokens the sequence has. Program p = (group of frames * W + window) * H + head.
    program = tl.program_id(0)
    window = program // num_heads % num_windows
    rows = tl.arange(0, BLOCK_ROWS)
    num_tokens = TOKENS
    if HAS_INDEX:  # index[window, rows], of [W, N]; rows beyond the window lie beyond the frame
        num_tokens = num_windows * TOKENS
        rows = tl.load(index_ptr + window * TOKENS + rows, mask=rows < TOKENS, other=num_tokens)
    head = (program % num_heads).to(tl.int64)
    return head, window, program // num_heads // num_windows * FRAMES, rows, num_tokens


@triton.jit
def _added_scores(
    bias_ptr, mask_ptr, head, window,
    TOKENS: tl.constexpr, BLOCK_ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    # Return what is added to the scores, in units of log2: bias[head] + mask[window], -inf for keys beyond the tokens,
    # [BLOCK_ROWS, BLOCK_ROWS], or [1, BLOCK_ROWS] where there is neither. Of bias [H, N, N] and mask [W, N, N].
    rows = tl.arange(0, BLOCK_ROWS)
    added = tl.where(rows < TOKENS, 0.0, float("-inf"))[None, :]
    if HAS_BIAS:
        bias_ptr += head * TOKENS * TOKENS
    if HAS_MASK:
        mask_ptr += window.to(tl.int64) * TOKENS * TOKENS
    return scale_and_add(added, bias_ptr, mask_ptr, rows[:, None], rows[None, :], 1.0, TOKENS, HAS_BIAS, HAS_MASK)


@triton.jit
def _exponentials(q, k, added, scale):
    # Return e [BLOCK_ROWS, BLOCK_ROWS] and a factor [BLOCK_ROWS, 1], both float32, whose product is the softmax of
    # scale * q k^T + added.
    s = tl.dot(q, tl.trans(k)) * (scale * LOG2_E) + added
    e = tl.exp2(s - tl.max(s, 1)[:, None])
    return e, (1.0 / tl.sum(e, 1))[:, None]


@triton.jit
def window_forward(
    qkv_ptr, out_ptr, lse_ptr, bias_ptr, mask_ptr,
    stride_qkv_frame, stride_qkv_token, stride_qkv_q_to_k, stride_qkv_head,
    stride_out_frame, stride_out_token, stride_out_head,
    num_frames, num_heads, num_windows, scale, index_ptr,
    TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    FRAMES: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr, HAS_INDEX: tl.constexpr,
):  # fmt: skip
    # For every window of every frame and head: p = softmax(scale * q k^T + bias[head] + mask[window]), out = p v.
    #
    # qkv is [F, N, 3, H, d] with F = frames * W windows, and out [F, N, H, d]; or with an index [W, N], of the tokens
    # that each window consists of, qkv [F, W*N, 3, H, d] and out [F, W*N, H, d]. num_frames counts the frames that have
    # each window. A program computes one window and head of FRAMES frames, a tile [BLOCK_ROWS, BLOCK_DIM] at a time.
    # lse is not written: the backward pass computes the whole softmax again.
    head, window, first_frame, rows, num_tokens = _first_window(
        index_ptr, num_heads, num_windows, TOKENS, BLOCK_ROWS, FRAMES, HAS_INDEX
    )
    added = _added_scores(bias_ptr, mask_ptr, head, window, TOKENS, BLOCK_ROWS, HAS_BIAS, HAS_MASK)
    for step in range(FRAMES):
        # The last frame again, where FRAMES does not divide them.
        frame = tl.minimum(first_frame + step, num_frames - 1).to(tl.int64)
        if not HAS_INDEX:
            frame = frame * num_windows + window
        q_ptr = qkv_ptr + frame * stride_qkv_frame + head * stride_qkv_head
        k_ptr = q_ptr + stride_qkv_q_to_k
        q = load(q_ptr, rows, stride_qkv_token, num_tokens, HEAD_DIM, BLOCK_DIM)
        k = load(k_ptr, rows, stride_qkv_token, num_tokens, HEAD_DIM, BLOCK_DIM)
        v = load(k_ptr + stride_qkv_q_to_k, rows, stride_qkv_token, num_tokens, HEAD_DIM, BLOCK_DIM)
        e, factor = _exponentials(q, k, added, scale)
        out = tl.dot(e.to(v.dtype), v) * factor  # less to multiply than p
        head_out_ptr = out_ptr + frame * stride_out_frame + head * stride_out_head
        store(head_out_ptr, out, rows, stride_out_token, num_tokens, HEAD_DIM, BLOCK_DIM)


@triton.jit
def window_backward(
    d_out_ptr, qkv_ptr, out_ptr, lse_ptr, delta_ptr, bias_ptr, mask_ptr, d_qkv_ptr,
    stride_d_out_frame, stride_d_out_token, stride_d_out_head,
    stride_qkv_frame, stride_qkv_token, stride_qkv_q_to_k, stride_qkv_head,
    stride_out_frame, stride_out_token, stride_out_head,
    num_frames, num_heads, num_windows, scale, index_ptr,
    TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    FRAMES: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr, HAS_INDEX: tl.constexpr,
):  # fmt: skip
    # For every window of every frame and head, p computed again as in the forward pass:
    #
    #     d_v = p^T d_out
    #     d_p = d_out v^T
    #     d_s = p * (d_p - sum(p * d_p, along the keys))     a tile holds whole rows, so this needs neither out nor lse
    #     d_q = scale * d_s k,  d_k = scale * d_s^T q
    #
    # Shapes and programs as in the forward pass; d_qkv has the shape of qkv, contiguous. out, lse and delta are not
    # read: the arguments are those of the other kinds.
    head, window, first_frame, rows, num_tokens = _first_window(
        index_ptr, num_heads, num_windows, TOKENS, BLOCK_ROWS, FRAMES, HAS_INDEX
    )
    added = _added_scores(bias_ptr, mask_ptr, head, window, TOKENS, BLOCK_ROWS, HAS_BIAS, HAS_MASK)
    for step in range(FRAMES):
        # The last frame again, where FRAMES does not divide them.
        frame = tl.minimum(first_frame + step, num_frames - 1).to(tl.int64)
        if not HAS_INDEX:
            frame = frame * num_windows + window
        q_ptr = qkv_ptr + frame * stride_qkv_frame + head * stride_qkv_head
        k_ptr = q_ptr + stride_qkv_q_to_k
        q = load(q_ptr, rows, stride_qkv_token, num_tokens, HEAD_DIM, BLOCK_DIM)
        k = load(k_ptr, rows, stride_qkv_token, num_tokens, HEAD_DIM, BLOCK_DIM)
        v = load(k_ptr + stride_qkv_q_to_k, rows, stride_qkv_token, num_tokens, HEAD_DIM, BLOCK_DIM)
        head_d_out_ptr = d_out_ptr + frame * stride_d_out_frame + head * stride_d_out_head
        d_out = load(head_d_out_ptr, rows, stride_d_out_token, num_tokens, HEAD_DIM, BLOCK_DIM)
        # d_qkv[frame, 0, 0, head, :], from where its tokens are 3 * H * d apart, and its d_q, d_k and d_v H * d.
        d_q_ptr = d_qkv_ptr + (frame * num_tokens * 3 * num_heads + head) * HEAD_DIM
        # Queries beyond the tokens count for nothing: the gradient of what they got is zero.
        e, factor = _exponentials(q, k, added, scale)
        p = e * factor
        d_v = tl.dot(tl.trans(p.to(d_out.dtype)), d_out)
        d_v_ptr = d_q_ptr + 2 * num_heads * HEAD_DIM
        store(d_v_ptr, d_v, rows, 3 * num_heads * HEAD_DIM, num_tokens, HEAD_DIM, BLOCK_DIM)
        d_p = tl.dot(d_out, tl.trans(v))
        d_s = (p * (d_p - tl.sum(p * d_p, 1)[:, None])).to(k.dtype)
        d_q = tl.dot(d_s, k) * scale
        store(d_q_ptr, d_q, rows, 3 * num_heads * HEAD_DIM, num_tokens, HEAD_DIM, BLOCK_DIM)
        d_k = tl.dot(tl.trans(d_s), q) * scale
        d_k_ptr = d_q_ptr + num_heads * HEAD_DIM
        store(d_k_ptr, d_k, rows, 3 * num_heads * HEAD_DIM, num_tokens, HEAD_DIM, BLOCK_DIM)
