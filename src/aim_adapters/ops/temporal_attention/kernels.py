"""Run temporal attention as Triton kernels, on tensors as a projection wrote them.

A tile holds the sequences of several neighboring tokens of one head, T rows each, under a block-diagonal mask: the
products over the whole tile cost next to nothing beside the bytes it reads and writes, which are each touched once.
The backward pass recomputes the probabilities in the same tile, so nothing of size T x T is stored.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl


@triton.jit
def _tile(tokens, heads, T: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr):
    """Return the clip, the head and the first token of a program; heads vary fastest, as they lie side by side."""
    program = tl.program_id(0)
    head = program % heads
    rest = program // heads
    groups = tl.cdiv(tokens, (ROWS // T) * TILES)
    return (rest // groups).to(tl.int64), head, (rest % groups) * ((ROWS // T) * TILES), rest


@triton.jit
def _rows(clip, first, tokens, T: tl.constexpr, ROWS: tl.constexpr):
    """Return the frame in the batch, the token, and whether there is one, for each row of a tile."""
    rows = tl.arange(0, ROWS)
    token = first + rows // T
    inside = (rows < (ROWS // T) * T) & (token < tokens)
    return clip * T + rows % T, token.to(tl.int64), inside


@triton.jit
def _load(pointer, frame, token, inside, head, stride_f, stride_n, stride_h, D: tl.constexpr, WIDTH: tl.constexpr):
    columns = tl.arange(0, WIDTH)
    offsets = (frame * stride_f + token * stride_n + head.to(tl.int64) * stride_h)[:, None] + columns[None, :]
    return tl.load(pointer + offsets, mask=inside[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def _store(
    pointer, tile, frame, token, inside, head, stride_f, stride_n, stride_h, D: tl.constexpr, WIDTH: tl.constexpr
):
    columns = tl.arange(0, WIDTH)
    offsets = (frame * stride_f + token * stride_n + head.to(tl.int64) * stride_h)[:, None] + columns[None, :]
    tl.store(pointer + offsets, tile.to(pointer.dtype.element_ty), mask=inside[:, None] & (columns < D)[None, :])


@triton.jit
def _probabilities(
    q, k, bias, head, scale, T: tl.constexpr, ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr
):
    """Return the softmax over each row's own sequence, and where a row and a column belong to one."""
    rows = tl.arange(0, ROWS)
    same = (rows // T)[:, None] == (rows // T)[None, :]
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * 1.4426950408889634)
    if HAS_BIAS:
        positions = head * (T * T) + (rows % T)[:, None] * T + (rows % T)[None, :]
        scores += tl.load(bias + positions).to(tl.float32) * 1.4426950408889634
    scores = tl.where(same, scores, float("-inf"))
    powers = tl.exp2(scores - tl.max(scores, 1)[:, None])
    return powers / tl.sum(powers, 1)[:, None], same


@triton.jit
def forward_kernel(
    q, k, v, out, bias,
    q_f, q_n, q_h, k_f, k_n, k_h, v_f, v_n, v_h, o_f, o_n, o_h,
    tokens, heads, scale,
    T: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, SHARED: tl.constexpr, HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    clip, head, first, _ = _tile(tokens, heads, T, ROWS, 1)
    frame, token, inside = _rows(clip, first, tokens, T, ROWS)
    q_tile = _load(q, frame, token, inside, head, q_f, q_n, q_h, D, WIDTH)
    k_tile = _load(k, frame, token, inside, head // SHARED, k_f, k_n, k_h, D, WIDTH)
    v_tile = _load(v, frame, token, inside, head // SHARED, v_f, v_n, v_h, D, WIDTH)
    p, _ = _probabilities(q_tile, k_tile, bias, head, scale, T, ROWS, HAS_BIAS, PRECISION)
    o_tile = tl.dot(p.to(v_tile.dtype), v_tile, input_precision=PRECISION)
    _store(out, o_tile, frame, token, inside, head, o_f, o_n, o_h, D, WIDTH)


@triton.jit
def backward_kernel(
    d_out, q, k, v, bias, d_q, d_k, d_v, d_bias, out,
    g_f, g_n, g_h, q_f, q_n, q_h, k_f, k_n, k_h, v_f, v_n, v_h, dq_f, dq_n, dq_h, dk_f, dk_n, dk_h, dv_f, dv_n, dv_h,
    o_f, o_n, o_h,
    tokens, heads, scale,
    T: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, SHARED: tl.constexpr, HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr, BIAS_WIDTH: tl.constexpr, TILES: tl.constexpr,
    HAS_OUT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    clip, head, first, rest = _tile(tokens, heads, T, ROWS, TILES)
    if HAS_BIAS:
        d_scores_sum = tl.zeros((ROWS, ROWS), tl.float32)
    for index in range(TILES):
        frame, token, inside = _rows(clip, first + index * (ROWS // T), tokens, T, ROWS)
        q_tile = _load(q, frame, token, inside, head, q_f, q_n, q_h, D, WIDTH)
        k_tile = _load(k, frame, token, inside, head // SHARED, k_f, k_n, k_h, D, WIDTH)
        v_tile = _load(v, frame, token, inside, head // SHARED, v_f, v_n, v_h, D, WIDTH)
        g_tile = _load(d_out, frame, token, inside, head, g_f, g_n, g_h, D, WIDTH)
        p, same = _probabilities(q_tile, k_tile, bias, head, scale, T, ROWS, HAS_BIAS, PRECISION)
        if HAS_OUT:
            o_tile = tl.dot(p.to(v_tile.dtype), v_tile, input_precision=PRECISION)
            _store(out, o_tile, frame, token, inside, head, o_f, o_n, o_h, D, WIDTH)
        d_v_tile = tl.dot(tl.trans(p.to(g_tile.dtype)), g_tile, input_precision=PRECISION)
        _store(d_v, d_v_tile, frame, token, inside, head, dv_f, dv_n, dv_h, D, WIDTH)
        d_p = tl.dot(g_tile, tl.trans(v_tile), input_precision=PRECISION)
        d_scores = p * (d_p - tl.sum(p * d_p, 1)[:, None])
        if HAS_BIAS:
            d_scores_sum += tl.where(same & inside[:, None], d_scores, 0.0)
        d_low = d_scores.to(q_tile.dtype)
        d_q_tile = tl.dot(d_low, k_tile, input_precision=PRECISION) * scale
        _store(d_q, d_q_tile, frame, token, inside, head, dq_f, dq_n, dq_h, D, WIDTH)
        d_k_tile = tl.dot(tl.trans(d_low), q_tile, input_precision=PRECISION) * scale
        _store(d_k, d_k_tile, frame, token, inside, head, dk_f, dk_n, dk_h, D, WIDTH)
    if HAS_BIAS:
        # Fold the tile's sequences onto one another by products with zeros and ones.
        rows, frames = tl.arange(0, ROWS), tl.arange(0, BIAS_WIDTH)
        belongs = ((rows % T)[:, None] == frames[None, :]).to(tl.float32)  # [ROWS, T]
        across = tl.dot(d_scores_sum, belongs, input_precision=EXACT)  # [ROWS, T]
        folded = tl.dot(tl.trans(belongs), across, input_precision=EXACT)  # [T, T]
        positions = (rest.to(tl.int64) * heads + head) * (T * T) + frames[:, None] * T + frames[None, :]
        tl.store(d_bias + positions, folded, mask=(frames < T)[:, None] & (frames < T)[None, :])


def _fitting(configs: list[triton.Config], tensors: dict[str, Any], **constants: Any) -> list[triton.Config]:
    """Leave out tiles that no sequence fits in or that sequences fill badly; with a bias or in float32, all but one.

    The sums of a bias' gradient are laid out by the size of the tile, so that has to be known beforehand.
    """
    frames: int = constants["T"]
    fitting = [config for config in configs if config.kwargs["ROWS"] >= frames][:2]
    if constants["HAS_BIAS"] or tensors["q"].element_size() > 2:
        return fitting[:1]
    filled = [config.kwargs["ROWS"] // frames * frames / config.kwargs["ROWS"] for config in fitting]
    return [config for config, share in zip(fitting, filled, strict=True) if share >= 0.9 * max(filled)]


def _tuned(kernel: Any, choices: Sequence[tuple[int, int]]) -> Any:
    """Choose among tiles of some (rows, warps) by their times at the first call of a kind; remember it on disk.

    Between the second process and the first, only reading the choice differs.
    """
    if not isinstance(kernel, triton.JITFunction):  # interpreted: nothing to measure
        return kernel
    options = {"cache_results": True} if "cache_results" in inspect.signature(triton.autotune).parameters else {}
    return triton.autotune(
        [triton.Config({"ROWS": rows}, num_warps=warps, num_stages=1) for rows, warps in choices],
        key=["T", "D", "HAS_BIAS", "SHARED"],
        prune_configs_by={"early_config_prune": _fitting},
        **options,
    )(kernel)


# By size, the smallest first. On an H200 the fastest are (32, 1) forward and (64, 4) backward, as far as frames fit.
forward = _tuned(forward_kernel, [(32, 1), (64, 4), (128, 4)])
backward = _tuned(backward_kernel, [(32, 1), (64, 4), (128, 4)])
