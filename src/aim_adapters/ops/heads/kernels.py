"""Triton kernels of queries and keys, normalized and rotated; each reads and writes every element once.

Letters: F frames of N tokens (num_tokens), H heads (HEADS) of d features (HEAD_DIM, even). A packed projection is
contiguous [F, N, 3, H, d]. Features are handled in pairs (a, b) that are rotated together: 2i and 2i + 1, or i and
i + d/2. The last N' tokens (num_rotated) of a frame are rotated, with rows of sin and cos [N', d] or [H, N', d]. All
arithmetic is float32, whatever the dtypes of the tensors; what is written is rounded to the dtype of where it goes.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load_pairs(
    row_ptr, inside, other, INTERLEAVED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_PAIRS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):  # fmt: skip
    # Return the pairs of rows of d elements that start at row_ptr [BLOCK_TOKENS, 1], both [BLOCK_TOKENS, BLOCK_PAIRS],
    # and the value of `other` where there is none.
    if INTERLEAVED:
        column = tl.arange(0, 2 * BLOCK_PAIRS)[None, :]  # side by side, so that they come in whole sectors
        both = tl.load(row_ptr + column, mask=inside & (column < HEAD_DIM), other=other).to(tl.float32)
        a, b = tl.split(tl.reshape(both, (BLOCK_TOKENS, BLOCK_PAIRS, 2)))
    else:
        pair = tl.arange(0, BLOCK_PAIRS)[None, :]
        mask = inside & (pair < HEAD_DIM // 2)
        a = tl.load(row_ptr + pair, mask=mask, other=other).to(tl.float32)
        b = tl.load(row_ptr + HEAD_DIM // 2 + pair, mask=mask, other=other).to(tl.float32)
    return a, b


@triton.jit
def _store_pairs(
    row_ptr, a, b, inside, INTERLEAVED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_PAIRS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):  # fmt: skip
    # Write what `_load_pairs` returns.
    if INTERLEAVED:
        column = tl.arange(0, 2 * BLOCK_PAIRS)[None, :]
        both = tl.reshape(tl.join(a, b), (BLOCK_TOKENS, 2 * BLOCK_PAIRS))
        tl.store(row_ptr + column, both.to(row_ptr.dtype.element_ty), mask=inside & (column < HEAD_DIM))
    else:
        pair = tl.arange(0, BLOCK_PAIRS)[None, :]
        mask = inside & (pair < HEAD_DIM // 2)
        tl.store(row_ptr + pair, a.to(row_ptr.dtype.element_ty), mask=mask)
        tl.store(row_ptr + HEAD_DIM // 2 + pair, b.to(row_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _normalize(a, b, eps, NORM: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_PAIRS: tl.constexpr):
    # Return the pairs minus the mean of their row (of a "layer" norm) and times rstd = 1 / sqrt(mean square + eps); and
    # rstd [BLOCK_TOKENS, 1]. Pairs that are not there stay 0.
    if NORM == "layer":
        there = (tl.arange(0, BLOCK_PAIRS) < HEAD_DIM // 2)[None, :]
        mean = (tl.sum(a + b, 1) / HEAD_DIM)[:, None]
        a = tl.where(there, a - mean, 0.0)
        b = tl.where(there, b - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(a * a + b * b, 1) / HEAD_DIM + eps)[:, None]
    return a * rstd, b * rstd, rstd


@triton.jit
def prepare_kernel(
    qkv_ptr, out_ptr, q_weight_ptr, q_bias_ptr, k_weight_ptr, k_bias_ptr, sin_ptr, cos_ptr,
    num_tokens, num_rotated, stride_angle_head, stride_angle_token, eps,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_PAIRS: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    NORM: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, ROTARY: tl.constexpr,
    PER_HEAD: tl.constexpr,
):  # fmt: skip
    # Of each query and key x [d] of qkv [F, N, 3, H, d]:
    #
    #     y = (x - mean(x)) * rstd * weight + bias  or  x * rstd * weight      (NORM), rstd as in `_normalize`
    #     out_a = y_a cos_a - y_b sin_a,  out_b = y_b cos_b + y_a sin_b        (ROTARY) of each pair (a, b)
    #
    # With NORM values are copied to out, without it out is qkv itself. Weights and biases are [d]. The angles of a head
    # are stride_angle_head elements apart (PER_HEAD), those of a token stride_angle_token. A program does BLOCK_TOKENS
    # tokens of a frame: program = frame * token tiles + token tile.
    INTERLEAVED: tl.constexpr = ROTARY == "interleaved"
    tiles = (num_tokens + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    token = (tl.program_id(0) % tiles * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS))[:, None]
    frame = (tl.program_id(0) // tiles).to(tl.int64)
    inside = token < num_tokens
    offsets = (frame * num_tokens + token) * (3 * HEADS * HEAD_DIM)
    place = token - (num_tokens - num_rotated)
    rotates = inside & (place >= 0)
    if ROTARY != "" and not PER_HEAD:
        angles = place * stride_angle_token
        sin_a, sin_b = _load_pairs(sin_ptr + angles, rotates, 0.0, INTERLEAVED, HEAD_DIM, BLOCK_PAIRS, BLOCK_TOKENS)
        cos_a, cos_b = _load_pairs(cos_ptr + angles, rotates, 1.0, INTERLEAVED, HEAD_DIM, BLOCK_PAIRS, BLOCK_TOKENS)
    for head in range(HEADS):
        if PER_HEAD:
            angles = head * stride_angle_head + place * stride_angle_token
            sin_a, sin_b = _load_pairs(sin_ptr + angles, rotates, 0.0, INTERLEAVED, HEAD_DIM, BLOCK_PAIRS, BLOCK_TOKENS)
            cos_a, cos_b = _load_pairs(cos_ptr + angles, rotates, 1.0, INTERLEAVED, HEAD_DIM, BLOCK_PAIRS, BLOCK_TOKENS)
        for part in tl.static_range(3 if NORM != "" else 2):
            rows = offsets + (part * HEADS + head) * HEAD_DIM
            a, b = _load_pairs(qkv_ptr + rows, inside, 0.0, INTERLEAVED, HEAD_DIM, BLOCK_PAIRS, BLOCK_TOKENS)
            if part < 2:
                if NORM != "":
                    a, b, _ = _normalize(a, b, eps, NORM, HEAD_DIM, BLOCK_PAIRS)
                    if HAS_WEIGHT:
                        of_row = (q_weight_ptr if part == 0 else k_weight_ptr) + 0 * token
                        weight_a, weight_b = _load_pairs(
                            of_row, inside, 0.0, INTERLEAVED, HEAD_DIM, BLOCK_PAIRS, BLOCK_TOKENS
                        )
                        a *= weight_a
                        b *= weight_b
                    if HAS_BIAS:
                        of_row = (q_bias_ptr if part == 0 else k_bias_ptr) + 0 * token
                        bias_a, bias_b = _load_pairs(
                            of_row, inside, 0.0, INTERLEAVED, HEAD_DIM, BLOCK_PAIRS, BLOCK_TOKENS
                        )
                        a += bias_a
                        b += bias_b
                if ROTARY != "":
                    rotated_a = a * cos_a - b * sin_a
                    b = b * cos_b + a * sin_b
                    a = rotated_a
            _store_pairs(out_ptr + rows, a, b, inside, INTERLEAVED, HEAD_DIM, BLOCK_PAIRS, BLOCK_TOKENS)


@triton.jit
def prepare_backward_kernel(
    d_qkv_ptr, qkv_ptr, q_weight_ptr, k_weight_ptr, sin_ptr, cos_ptr,
    num_tokens, num_rotated, stride_angle_head, stride_angle_token, eps,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_PAIRS: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    NORM: tl.constexpr, HAS_WEIGHT: tl.constexpr, ROTARY: tl.constexpr, PER_HEAD: tl.constexpr,
):  # fmt: skip
    # In place of the gradients g [d] of queries and keys in d_qkv [F, N, 3, H, d], those of what `prepare_kernel` read:
    #
    #     g'_a = g_a cos_a + g_b sin_b,  g'_b = g_b cos_b - g_a sin_a              (ROTARY)
    #     d_x = (v - mean(v) - n mean(v n)) * rstd,  v = g' * weight               (NORM "layer"; "rms" without mean(v))
    #
    # with n the normalized x of qkv, computed again. Without NORM qkv is not read. Programs as in `prepare_kernel`.
    INTERLEAVED: tl.constexpr = ROTARY == "interleaved"
    tiles = (num_tokens + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    token = (tl.program_id(0) % tiles * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS))[:, None]
    frame = (tl.program_id(0) // tiles).to(tl.int64)
    inside = token < num_tokens
    offsets = (frame * num_tokens + token) * (3 * HEADS * HEAD_DIM)
    place = token - (num_tokens - num_rotated)
    rotates = inside & (place >= 0)
    if ROTARY != "" and not PER_HEAD:
        angles = place * stride_angle_token
        sin_a, sin_b = _load_pairs(sin_ptr + angles, rotates, 0.0, INTERLEAVED, HEAD_DIM, BLOCK_PAIRS, BLOCK_TOKENS)
        cos_a, cos_b = _load_pairs(cos_ptr + angles, rotates, 1.0, INTERLEAVED, HEAD_DIM, BLOCK_PAIRS, BLOCK_TOKENS)
    for head in range(HEADS):
        if PER_HEAD:
            angles = head * stride_angle_head + place * stride_angle_token
            sin_a, sin_b = _load_pairs(sin_ptr + angles, rotates, 0.0, INTERLEAVED, HEAD_DIM, BLOCK_PAIRS, BLOCK_TOKENS)
            cos_a, cos_b = _load_pairs(cos_ptr + angles, rotates, 1.0, INTERLEAVED, HEAD_DIM, BLOCK_PAIRS, BLOCK_TOKENS)
        for part in tl.static_range(2):
            rows = offsets + (part * HEADS + head) * HEAD_DIM
            a, b = _load_pairs(d_qkv_ptr + rows, inside, 0.0, INTERLEAVED, HEAD_DIM, BLOCK_PAIRS, BLOCK_TOKENS)
            if ROTARY != "":
                rotated_a = a * cos_a + b * sin_b
                b = b * cos_b - a * sin_a
                a = rotated_a
            if NORM != "":
                x_a, x_b = _load_pairs(qkv_ptr + rows, inside, 0.0, INTERLEAVED, HEAD_DIM, BLOCK_PAIRS, BLOCK_TOKENS)
                n_a, n_b, rstd = _normalize(x_a, x_b, eps, NORM, HEAD_DIM, BLOCK_PAIRS)
                if HAS_WEIGHT:
                    of_row = (q_weight_ptr if part == 0 else k_weight_ptr) + 0 * token
                    weight_a, weight_b = _load_pairs(
                        of_row, inside, 0.0, INTERLEAVED, HEAD_DIM, BLOCK_PAIRS, BLOCK_TOKENS
                    )
                    a *= weight_a
                    b *= weight_b
                along = (tl.sum(a * n_a + b * n_b, 1) / HEAD_DIM)[:, None]
                if NORM == "layer":
                    mean = (tl.sum(a + b, 1) / HEAD_DIM)[:, None]
                    a -= mean
                    b -= mean
                a = (a - n_a * along) * rstd
                b = (b - n_b * along) * rstd
            _store_pairs(d_qkv_ptr + rows, a, b, inside, INTERLEAVED, HEAD_DIM, BLOCK_PAIRS, BLOCK_TOKENS)
