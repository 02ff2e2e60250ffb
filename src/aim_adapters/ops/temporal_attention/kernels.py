"""Triton kernels of temporal attention, on tensors as a projection wrote them.

A tile holds the sequences of several neighboring tokens of one head, T rows each, under a block-diagonal mask: the
products over the whole tile cost next to nothing beside the bytes it reads and writes, which are each touched once.
The backward pass recomputes the probabilities in the same tile, so nothing of size T x T is stored.

Letters: B clips, T frames (FRAMES), N tokens, H query heads, G key/value heads, d width of a head (HEAD_DIM). Row r of
a tile whose first token is n belongs to token n + r // T and frame r % T; with BLOCK_ROWS // T sequences in a tile, the
last BLOCK_ROWS % T rows are empty. Products are accumulated in float32, and softmax and sums are float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl

from aim_adapters.ops.temporal_attention.tiles import SIZES

LOG2_E = tl.constexpr(1.4426950408889634)  # exp(x) = exp2(x * log2(e)), and exp2 is one instruction


@triton.jit
def _first_tile(num_tokens, num_heads, FRAMES: tl.constexpr, BLOCK_ROWS: tl.constexpr, TILES: tl.constexpr):
    # Return the clip, the head, the first token and the group of tokens, over all clips, of a program, which goes
    # through TILES tiles. Program p = (clip * groups + group) * H + head: heads vary fastest, as they lie side by side.
    program = tl.program_id(0)
    head = program % num_heads
    group = program // num_heads
    groups_per_clip = tl.cdiv(num_tokens, (BLOCK_ROWS // FRAMES) * TILES)
    clip = (group // groups_per_clip).to(tl.int64)
    first_token = (group % groups_per_clip) * ((BLOCK_ROWS // FRAMES) * TILES)
    return clip, head, first_token, group


@triton.jit
def _rows(
    clip, first_token, num_tokens, FIRST: tl.constexpr, SIZE: tl.constexpr,
    FRAMES: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    # Return the frame in the batch, the token, and whether there is one, for SIZE rows of a tile: [SIZE] each.
    rows = FIRST + tl.arange(0, SIZE)
    token = first_token + rows // FRAMES
    inside = (rows < (BLOCK_ROWS // FRAMES) * FRAMES) & (token < num_tokens)
    return clip * FRAMES + rows % FRAMES, token.to(tl.int64), inside


@triton.jit
def _load(
    x_ptr, frame, token, inside, head, stride_x_frame, stride_x_token, stride_x_head,
    HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, REST_DIM: tl.constexpr,
):  # fmt: skip
    # Read x[frame, token, head, :] for each row, of x [B*T, N, H, d]: the first BLOCK_DIM columns and the REST_DIM
    # behind them, zeros where there is no element. With REST_DIM = 0 the second tile is not used: it cannot be empty.
    rows = frame * stride_x_frame + token * stride_x_token + head.to(tl.int64) * stride_x_head
    columns = tl.arange(0, BLOCK_DIM)
    mask = inside[:, None] & (columns < HEAD_DIM)[None, :]
    x = tl.load(x_ptr + rows[:, None] + columns[None, :], mask=mask, other=0.0)
    x_rest = x
    if REST_DIM > 0:
        columns = BLOCK_DIM + tl.arange(0, REST_DIM)
        mask = inside[:, None] & (columns < HEAD_DIM)[None, :]
        x_rest = tl.load(x_ptr + rows[:, None] + columns[None, :], mask=mask, other=0.0)
    return x, x_rest


@triton.jit
def _dot_transposed(x, x_rest, y, y_rest, REST_DIM: tl.constexpr, DOT_PRECISION: tl.constexpr):
    # Return x y^T, in float32.
    product = tl.dot(x, tl.trans(y), input_precision=DOT_PRECISION)
    if REST_DIM > 0:
        product = tl.dot(x_rest, tl.trans(y_rest), product, input_precision=DOT_PRECISION)
    return product


@triton.jit
def _store_dot(
    x_ptr, p, y, y_rest, factor, frame, token, inside, head, stride_x_frame, stride_x_token, stride_x_head,
    HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, REST_DIM: tl.constexpr, DOT_PRECISION: tl.constexpr,
):  # fmt: skip
    # Write factor * p y where `_load` reads it, rounded to the dtype of x.
    rows = frame * stride_x_frame + token * stride_x_token + head.to(tl.int64) * stride_x_head
    columns = tl.arange(0, BLOCK_DIM)
    mask = inside[:, None] & (columns < HEAD_DIM)[None, :]
    tile = (tl.dot(p, y, input_precision=DOT_PRECISION) * factor).to(x_ptr.dtype.element_ty)
    tl.store(x_ptr + rows[:, None] + columns[None, :], tile, mask=mask)
    if REST_DIM > 0:
        columns = BLOCK_DIM + tl.arange(0, REST_DIM)
        mask = inside[:, None] & (columns < HEAD_DIM)[None, :]
        tile = (tl.dot(p, y_rest, input_precision=DOT_PRECISION) * factor).to(x_ptr.dtype.element_ty)
        tl.store(x_ptr + rows[:, None] + columns[None, :], tile, mask=mask)


@triton.jit
def _added_scores(
    bias_ptr, head, FIRST: tl.constexpr, SIZE: tl.constexpr,
    FRAMES: tl.constexpr, BLOCK_ROWS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    # Return what is added to the scores of SIZE rows of a tile, in units of log2: bias[head, frame of the row, frame of
    # the column], of [H, T, T], or 0, where row and column belong to one sequence, and else -inf: [SIZE, BLOCK_ROWS].
    rows = (FIRST + tl.arange(0, SIZE))[:, None]
    columns = tl.arange(0, BLOCK_ROWS)[None, :]
    added = tl.zeros((SIZE, BLOCK_ROWS), tl.float32)
    if HAS_BIAS:
        offsets = head * (FRAMES * FRAMES) + (rows % FRAMES) * FRAMES + columns % FRAMES
        added = tl.load(bias_ptr + offsets).to(tl.float32) * LOG2_E
    return tl.where(rows // FRAMES == columns // FRAMES, added, float("-inf"))


@triton.jit
def _softmax(products, added, scale):
    # Return p = softmax(scale * products + added) along the keys, float32; in units of log2, as exp2 is what there is.
    scores = products * (scale * LOG2_E) + added
    exponentials = tl.exp2(scores - tl.max(scores, 1)[:, None])
    return exponentials * (1.0 / tl.sum(exponentials, 1))[:, None]


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, bias_ptr,
    stride_q_frame, stride_q_token, stride_q_head,
    stride_k_frame, stride_k_token, stride_k_head,
    stride_v_frame, stride_v_token, stride_v_head,
    stride_out_frame, stride_out_token, stride_out_head,
    num_tokens, num_heads, scale,
    FRAMES: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, REST_DIM: tl.constexpr,
    QUERY_HEADS_PER_KV_HEAD: tl.constexpr, HAS_BIAS: tl.constexpr, DOT_PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    # For every clip, token and head, with q, k, v [T, d] of the token over the frames of the clip:
    #
    #     p   = softmax(scale * q k^T + bias[head])    [T, T], float32, then rounded to the dtype of v
    #     out = p v                                    [T, d], accumulated in float32
    #
    # q and out are [B*T, N, H, d], k and v [B*T, N, G, d], bias [H, T, T]. A program computes one tile of one head:
    # the sequences of BLOCK_ROWS // T neighboring tokens of a clip, up to 64 of its queries at a time.
    BLOCK_QUERIES: tl.constexpr = 64 if BLOCK_ROWS > 64 else BLOCK_ROWS
    clip, head, first_token, _ = _first_tile(num_tokens, num_heads, FRAMES, BLOCK_ROWS, 1)
    frame, token, inside = _rows(clip, first_token, num_tokens, 0, BLOCK_ROWS, FRAMES, BLOCK_ROWS)
    kv_head = head // QUERY_HEADS_PER_KV_HEAD
    k, k_rest = _load(
        k_ptr, frame, token, inside, kv_head, stride_k_frame, stride_k_token, stride_k_head,
        HEAD_DIM, BLOCK_DIM, REST_DIM,
    )  # fmt: skip
    v, v_rest = _load(
        v_ptr, frame, token, inside, kv_head, stride_v_frame, stride_v_token, stride_v_head,
        HEAD_DIM, BLOCK_DIM, REST_DIM,
    )  # fmt: skip
    for first in tl.static_range(0, BLOCK_ROWS, BLOCK_QUERIES):
        frame, token, inside = _rows(clip, first_token, num_tokens, first, BLOCK_QUERIES, FRAMES, BLOCK_ROWS)
        q, q_rest = _load(
            q_ptr, frame, token, inside, head, stride_q_frame, stride_q_token, stride_q_head,
            HEAD_DIM, BLOCK_DIM, REST_DIM,
        )  # fmt: skip
        added = _added_scores(bias_ptr, head, first, BLOCK_QUERIES, FRAMES, BLOCK_ROWS, HAS_BIAS)
        p = _softmax(_dot_transposed(q, q_rest, k, k_rest, REST_DIM, DOT_PRECISION), added, scale)
        _store_dot(
            out_ptr, p.to(v.dtype), v, v_rest, 1.0, frame, token, inside, head,
            stride_out_frame, stride_out_token, stride_out_head, HEAD_DIM, BLOCK_DIM, REST_DIM, DOT_PRECISION,
        )  # fmt: skip


@triton.jit
def backward_kernel(
    d_out_ptr, q_ptr, k_ptr, v_ptr, bias_ptr, d_q_ptr, d_k_ptr, d_v_ptr, d_bias_ptr, out_ptr,
    stride_d_out_frame, stride_d_out_token, stride_d_out_head,
    stride_q_frame, stride_q_token, stride_q_head,
    stride_k_frame, stride_k_token, stride_k_head,
    stride_v_frame, stride_v_token, stride_v_head,
    stride_d_q_frame, stride_d_q_token, stride_d_q_head,
    stride_d_k_frame, stride_d_k_token, stride_d_k_head,
    stride_d_v_frame, stride_d_v_token, stride_d_v_head,
    stride_out_frame, stride_out_token, stride_out_head,
    num_tokens, num_heads, scale,
    FRAMES: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, REST_DIM: tl.constexpr,
    QUERY_HEADS_PER_KV_HEAD: tl.constexpr, HAS_BIAS: tl.constexpr, DOT_PRECISION: tl.constexpr,
    BIAS_DOT_PRECISION: tl.constexpr, BLOCK_FRAMES: tl.constexpr, TILES: tl.constexpr, HAS_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    # For every clip, token and head, with q, k, v and d_out, the gradient of the output, [T, d]:
    #
    #     p   = softmax(scale * q k^T + bias[head])          as in the forward pass
    #     d_v = p^T d_out                                    [T, d]
    #     d_p = d_out v^T                                    [T, T]
    #     d_s = p * (d_p - sum(p * d_p, along the keys))     [T, T], gradient of the scores, float32
    #     d_q = scale * d_s k                                [T, d], d_s rounded to the dtype of q
    #     d_k = scale * d_s^T q                              [T, d]
    #     d_bias[head] = sum of d_s over clips and tokens    [T, T]
    #
    # d_q, d_k and d_v are [B*T, N, H, d]: one gradient of keys and values for each query head. d_bias is the partial
    # sums [programs / H, H, T, T], float32. With HAS_OUT the output, p v, is written again, [B*T, N, H, d].
    # A program computes TILES tiles of one head in turn, and adds up d_s over them in float32.
    clip, head, first_token, group = _first_tile(num_tokens, num_heads, FRAMES, BLOCK_ROWS, TILES)
    kv_head = head // QUERY_HEADS_PER_KV_HEAD
    added = _added_scores(bias_ptr, head, 0, BLOCK_ROWS, FRAMES, BLOCK_ROWS, HAS_BIAS)
    if HAS_BIAS:
        d_s_sum = tl.zeros((BLOCK_ROWS, BLOCK_ROWS), tl.float32)
    for index in tl.range(0, TILES, num_stages=2 if BLOCK_ROWS == 32 else 1):  # larger tiles would not fit twice
        first_of_tile = first_token + index * (BLOCK_ROWS // FRAMES)
        frame, token, inside = _rows(clip, first_of_tile, num_tokens, 0, BLOCK_ROWS, FRAMES, BLOCK_ROWS)
        q, q_rest = _load(
            q_ptr, frame, token, inside, head, stride_q_frame, stride_q_token, stride_q_head,
            HEAD_DIM, BLOCK_DIM, REST_DIM,
        )  # fmt: skip
        k, k_rest = _load(
            k_ptr, frame, token, inside, kv_head, stride_k_frame, stride_k_token, stride_k_head,
            HEAD_DIM, BLOCK_DIM, REST_DIM,
        )  # fmt: skip
        v, v_rest = _load(
            v_ptr, frame, token, inside, kv_head, stride_v_frame, stride_v_token, stride_v_head,
            HEAD_DIM, BLOCK_DIM, REST_DIM,
        )  # fmt: skip
        d_out, d_out_rest = _load(
            d_out_ptr, frame, token, inside, head, stride_d_out_frame, stride_d_out_token, stride_d_out_head,
            HEAD_DIM, BLOCK_DIM, REST_DIM,
        )  # fmt: skip
        p = _softmax(_dot_transposed(q, q_rest, k, k_rest, REST_DIM, DOT_PRECISION), added, scale)
        p_rounded = p.to(v.dtype)
        if HAS_OUT:
            _store_dot(
                out_ptr, p_rounded, v, v_rest, 1.0, frame, token, inside, head,
                stride_out_frame, stride_out_token, stride_out_head, HEAD_DIM, BLOCK_DIM, REST_DIM, DOT_PRECISION,
            )  # fmt: skip
        _store_dot(
            d_v_ptr, tl.trans(p_rounded), d_out, d_out_rest, 1.0, frame, token, inside, head,
            stride_d_v_frame, stride_d_v_token, stride_d_v_head, HEAD_DIM, BLOCK_DIM, REST_DIM, DOT_PRECISION,
        )  # fmt: skip
        d_p = _dot_transposed(d_out, d_out_rest, v, v_rest, REST_DIM, DOT_PRECISION)
        d_s = p * (d_p - tl.sum(p * d_p, 1)[:, None])
        if HAS_BIAS:  # zero between sequences, as p is, and where there is no token, as d_out is
            d_s_sum += d_s
        d_s_rounded = d_s.to(q.dtype)
        _store_dot(
            d_q_ptr, d_s_rounded, k, k_rest, scale, frame, token, inside, head,
            stride_d_q_frame, stride_d_q_token, stride_d_q_head, HEAD_DIM, BLOCK_DIM, REST_DIM, DOT_PRECISION,
        )  # fmt: skip
        _store_dot(
            d_k_ptr, tl.trans(d_s_rounded), q, q_rest, scale, frame, token, inside, head,
            stride_d_k_frame, stride_d_k_token, stride_d_k_head, HEAD_DIM, BLOCK_DIM, REST_DIM, DOT_PRECISION,
        )  # fmt: skip
    if HAS_BIAS:
        # d_bias[group, head, query frame, key frame]
        d_bias_ptr += (group.to(tl.int64) * num_heads + head) * (FRAMES * FRAMES)
        if BLOCK_ROWS // FRAMES == 1:
            frames = tl.arange(0, BLOCK_ROWS)
            d_bias = d_s_sum
        else:  # fold the sequences onto one another: f^T d_s f, with f[row, frame] = 1 where the row is of the frame
            rows, frames = tl.arange(0, BLOCK_ROWS), tl.arange(0, BLOCK_FRAMES)
            of_frame = ((rows % FRAMES)[:, None] == frames[None, :]).to(tl.float32)  # [BLOCK_ROWS, BLOCK_FRAMES]
            keys_folded = tl.dot(d_s_sum, of_frame, input_precision=BIAS_DOT_PRECISION)  # [BLOCK_ROWS, BLOCK_FRAMES]
            d_bias = tl.dot(tl.trans(of_frame), keys_folded, input_precision=BIAS_DOT_PRECISION)  # [BLOCK_FRAMES] twice
        inside = (frames < FRAMES)[:, None] & (frames < FRAMES)[None, :]
        tl.store(d_bias_ptr + frames[:, None] * FRAMES + frames[None, :], d_bias, mask=inside)


def _fitting(configs: list[triton.Config], tensors: dict[str, Any], **constants: Any) -> list[triton.Config]:
    """Leave out tiles that no sequence fits in or fills badly; with a bias or in float32, all larger ones.

    The sums of a bias' gradient are laid out by the size of the tile, so that has to be known beforehand. Two warps are
    for rows that are too wide for the registers of one.
    """
    frames, itemsize = constants["FRAMES"], tensors["q_ptr"].element_size()
    sizes = [rows for rows in SIZES if rows >= frames][: 1 if constants["HAS_BIAS"] or itemsize > 2 else 2]
    filled = {rows: rows // frames * frames / rows for rows in sizes}
    wide = constants["HEAD_DIM"] * itemsize > 128
    return [
        config
        for config in configs
        if filled.get(config.kwargs["BLOCK_ROWS"], 0.0) >= 0.9 * max(filled.values())
        and (wide or config.num_warps != 2)
    ]


def _tuned(kernel: Any, choices: Sequence[tuple[int, int]]) -> Any:
    """Choose among tiles of some (rows, warps) by their times at the first call of a kind, and keep the choice on disk.

    A later process reads the choice, and measures nothing.
    """
    if not isinstance(kernel, triton.JITFunction):  # interpreted: nothing to measure
        return kernel
    options = {"cache_results": True} if "cache_results" in inspect.signature(triton.autotune).parameters else {}
    return triton.autotune(
        [triton.Config({"BLOCK_ROWS": rows}, num_warps=warps, num_stages=1) for rows, warps in choices],
        key=["FRAMES", "HEAD_DIM", "HAS_BIAS", "QUERY_HEADS_PER_KV_HEAD"],
        prune_configs_by={"early_config_prune": _fitting},
        **options,
    )(kernel)


# On an H200 the fastest are (32, 1) forward and (64, 4) backward, as far as frames fit; of heads wider than 64, (32, 2)
# forward and (32, 1) backward; and of more than 64 frames that are wider than 64, (128, 8) backward.
forward = _tuned(forward_kernel, [(32, 1), (32, 2), (64, 4), (128, 4)])
backward = _tuned(backward_kernel, [(32, 1), (32, 2), (64, 4), (128, 4), (128, 8)])
