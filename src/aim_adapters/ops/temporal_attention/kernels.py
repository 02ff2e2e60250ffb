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
def _rows(clip, first_token, num_tokens, FRAMES: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    # Return the frame in the batch, the token, and whether there is one, for each row of a tile: [BLOCK_ROWS] each.
    rows = tl.arange(0, BLOCK_ROWS)
    token = first_token + rows // FRAMES
    inside = (rows < (BLOCK_ROWS // FRAMES) * FRAMES) & (token < num_tokens)
    return clip * FRAMES + rows % FRAMES, token.to(tl.int64), inside


@triton.jit
def _load(
    x_ptr, frame, token, inside, head, stride_x_frame, stride_x_token, stride_x_head,
    HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    # Read x[frame, token, head, :] for each row, of x [B*T, N, H, d]: [BLOCK_ROWS, BLOCK_DIM], zeros elsewhere.
    columns = tl.arange(0, BLOCK_DIM)
    rows = frame * stride_x_frame + token * stride_x_token + head.to(tl.int64) * stride_x_head
    offsets = rows[:, None] + columns[None, :]
    return tl.load(x_ptr + offsets, mask=inside[:, None] & (columns < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def _store(
    x_ptr, tile, frame, token, inside, head, stride_x_frame, stride_x_token, stride_x_head,
    HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    # Write a tile [BLOCK_ROWS, BLOCK_DIM] where `_load` reads it, rounded to the dtype of x.
    columns = tl.arange(0, BLOCK_DIM)
    rows = frame * stride_x_frame + token * stride_x_token + head.to(tl.int64) * stride_x_head
    offsets = rows[:, None] + columns[None, :]
    tl.store(x_ptr + offsets, tile.to(x_ptr.dtype.element_ty), mask=inside[:, None] & (columns < HEAD_DIM)[None, :])


@triton.jit
def _probabilities(
    q, k, bias_ptr, head, scale,
    FRAMES: tl.constexpr, BLOCK_ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, DOT_PRECISION: tl.constexpr,
):  # fmt: skip
    # Return p = softmax(scale * q k^T + bias) over each row's own sequence, [BLOCK_ROWS, BLOCK_ROWS] in float32, and
    # where row and column belong to one sequence. Off those blocks p is 0. In units of log2, as exp2 is what there is.
    rows = tl.arange(0, BLOCK_ROWS)
    same_sequence = (rows // FRAMES)[:, None] == (rows // FRAMES)[None, :]
    scores = tl.dot(q, tl.trans(k), input_precision=DOT_PRECISION) * (scale * LOG2_E)
    if HAS_BIAS:  # bias[head, frame of the row, frame of the column], of [H, T, T]
        offsets = head * (FRAMES * FRAMES) + (rows % FRAMES)[:, None] * FRAMES + (rows % FRAMES)[None, :]
        scores += tl.load(bias_ptr + offsets).to(tl.float32) * LOG2_E
    scores = tl.where(same_sequence, scores, float("-inf"))
    exponentials = tl.exp2(scores - tl.max(scores, 1)[:, None])
    return exponentials / tl.sum(exponentials, 1)[:, None], same_sequence


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, bias_ptr,
    stride_q_frame, stride_q_token, stride_q_head,
    stride_k_frame, stride_k_token, stride_k_head,
    stride_v_frame, stride_v_token, stride_v_head,
    stride_out_frame, stride_out_token, stride_out_head,
    num_tokens, num_heads, scale,
    FRAMES: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, QUERY_HEADS_PER_KV_HEAD: tl.constexpr,
    HAS_BIAS: tl.constexpr, DOT_PRECISION: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    # For every clip, token and head, with q, k, v [T, d] of the token over the frames of the clip:
    #
    #     p   = softmax(scale * q k^T + bias[head])    [T, T], float32, then rounded to the dtype of v
    #     out = p v                                    [T, d], accumulated in float32
    #
    # q and out are [B*T, N, H, d], k and v [B*T, N, G, d], bias [H, T, T]. A program computes one tile of one head:
    # the sequences of BLOCK_ROWS // T neighboring tokens of a clip.
    clip, head, first_token, _ = _first_tile(num_tokens, num_heads, FRAMES, BLOCK_ROWS, 1)
    frame, token, inside = _rows(clip, first_token, num_tokens, FRAMES, BLOCK_ROWS)
    q = _load(q_ptr, frame, token, inside, head, stride_q_frame, stride_q_token, stride_q_head, HEAD_DIM, BLOCK_DIM)
    kv_head = head // QUERY_HEADS_PER_KV_HEAD
    k = _load(k_ptr, frame, token, inside, kv_head, stride_k_frame, stride_k_token, stride_k_head, HEAD_DIM, BLOCK_DIM)
    v = _load(v_ptr, frame, token, inside, kv_head, stride_v_frame, stride_v_token, stride_v_head, HEAD_DIM, BLOCK_DIM)
    p, _ = _probabilities(q, k, bias_ptr, head, scale, FRAMES, BLOCK_ROWS, HAS_BIAS, DOT_PRECISION)
    out = tl.dot(p.to(v.dtype), v, input_precision=DOT_PRECISION)
    _store(
        out_ptr, out, frame, token, inside, head, stride_out_frame, stride_out_token, stride_out_head,
        HEAD_DIM, BLOCK_DIM,
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
    FRAMES: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, QUERY_HEADS_PER_KV_HEAD: tl.constexpr,
    HAS_BIAS: tl.constexpr, DOT_PRECISION: tl.constexpr, BIAS_DOT_PRECISION: tl.constexpr,
    BLOCK_FRAMES: tl.constexpr, TILES: tl.constexpr, HAS_OUT: tl.constexpr, BLOCK_ROWS: tl.constexpr,
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
    if HAS_BIAS:
        d_s_sum = tl.zeros((BLOCK_ROWS, BLOCK_ROWS), tl.float32)
    for index in range(TILES):
        first_of_tile = first_token + index * (BLOCK_ROWS // FRAMES)
        frame, token, inside = _rows(clip, first_of_tile, num_tokens, FRAMES, BLOCK_ROWS)
        q = _load(q_ptr, frame, token, inside, head, stride_q_frame, stride_q_token, stride_q_head, HEAD_DIM, BLOCK_DIM)
        kv_head = head // QUERY_HEADS_PER_KV_HEAD
        k = _load(
            k_ptr, frame, token, inside, kv_head, stride_k_frame, stride_k_token, stride_k_head, HEAD_DIM, BLOCK_DIM
        )
        v = _load(
            v_ptr, frame, token, inside, kv_head, stride_v_frame, stride_v_token, stride_v_head, HEAD_DIM, BLOCK_DIM
        )
        d_out = _load(
            d_out_ptr, frame, token, inside, head, stride_d_out_frame, stride_d_out_token, stride_d_out_head,
            HEAD_DIM, BLOCK_DIM,
        )  # fmt: skip
        p, same_sequence = _probabilities(q, k, bias_ptr, head, scale, FRAMES, BLOCK_ROWS, HAS_BIAS, DOT_PRECISION)
        if HAS_OUT:
            out = tl.dot(p.to(v.dtype), v, input_precision=DOT_PRECISION)
            _store(
                out_ptr, out, frame, token, inside, head, stride_out_frame, stride_out_token, stride_out_head,
                HEAD_DIM, BLOCK_DIM,
            )  # fmt: skip
        d_v = tl.dot(tl.trans(p.to(d_out.dtype)), d_out, input_precision=DOT_PRECISION)
        _store(
            d_v_ptr, d_v, frame, token, inside, head, stride_d_v_frame, stride_d_v_token, stride_d_v_head,
            HEAD_DIM, BLOCK_DIM,
        )  # fmt: skip
        d_p = tl.dot(d_out, tl.trans(v), input_precision=DOT_PRECISION)
        d_s = p * (d_p - tl.sum(p * d_p, 1)[:, None])
        if HAS_BIAS:
            d_s_sum += tl.where(same_sequence & inside[:, None], d_s, 0.0)
        d_s_rounded = d_s.to(q.dtype)
        d_q = tl.dot(d_s_rounded, k, input_precision=DOT_PRECISION) * scale
        _store(
            d_q_ptr, d_q, frame, token, inside, head, stride_d_q_frame, stride_d_q_token, stride_d_q_head,
            HEAD_DIM, BLOCK_DIM,
        )  # fmt: skip
        d_k = tl.dot(tl.trans(d_s_rounded), q, input_precision=DOT_PRECISION) * scale
        _store(
            d_k_ptr, d_k, frame, token, inside, head, stride_d_k_frame, stride_d_k_token, stride_d_k_head,
            HEAD_DIM, BLOCK_DIM,
        )  # fmt: skip
    if HAS_BIAS:
        # Fold the tile's sequences onto one another: f^T d_s f, with f[row, frame] = 1 where the row is of the frame.
        rows, frames = tl.arange(0, BLOCK_ROWS), tl.arange(0, BLOCK_FRAMES)
        of_frame = ((rows % FRAMES)[:, None] == frames[None, :]).to(tl.float32)  # [BLOCK_ROWS, BLOCK_FRAMES]
        keys_folded = tl.dot(d_s_sum, of_frame, input_precision=BIAS_DOT_PRECISION)  # [BLOCK_ROWS, BLOCK_FRAMES]
        folded = tl.dot(tl.trans(of_frame), keys_folded, input_precision=BIAS_DOT_PRECISION)  # [BLOCK_FRAMES] twice
        # d_bias[group, head, query frame, key frame]
        offsets = (group.to(tl.int64) * num_heads + head) * (FRAMES * FRAMES)
        offsets = offsets + frames[:, None] * FRAMES + frames[None, :]
        tl.store(d_bias_ptr + offsets, folded, mask=(frames < FRAMES)[:, None] & (frames < FRAMES)[None, :])


def _fitting(configs: list[triton.Config], tensors: dict[str, Any], **constants: Any) -> list[triton.Config]:
    """Leave out tiles that no sequence fits in or that sequences fill badly; with a bias or in float32, all but one.

    The sums of a bias' gradient are laid out by the size of the tile, so that has to be known beforehand.
    """
    frames: int = constants["FRAMES"]
    fitting = [config for config in configs if config.kwargs["BLOCK_ROWS"] >= frames][:2]
    if constants["HAS_BIAS"] or tensors["q_ptr"].element_size() > 2:
        return fitting[:1]
    filled = [config.kwargs["BLOCK_ROWS"] // frames * frames / config.kwargs["BLOCK_ROWS"] for config in fitting]
    return [config for config, share in zip(fitting, filled, strict=True) if share >= 0.9 * max(filled)]


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


# By size, the smallest first. On an H200 the fastest are (32, 1) forward and (64, 4) backward, as far as frames fit.
forward = _tuned(forward_kernel, [(32, 1), (64, 4), (128, 4)])
backward = _tuned(backward_kernel, [(32, 1), (64, 4), (128, 4)])
