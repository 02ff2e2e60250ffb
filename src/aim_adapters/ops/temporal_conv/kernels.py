"""Triton kernels of the convolution over frames and GELU; each element is read and written once.

Letters: B clips, T frames, N tokens of a frame, W features of a token (WIDTH), K taps (KERNEL, odd), C = K // 2. All
arithmetic is float32, whatever the dtypes of the tensors; what is written is rounded to the dtype of where it goes.

A tile holds BLOCK_ROWS token positions, of any clips, by BLOCK_WIDTH features. A program walks with its tile through
the frames of the clips, with a window of the K frames around it in registers: tuples of K tensors, oldest first. It
takes STEP frames at once, a divisor of T, and asks for the next ones before it computes these.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aim_adapters.ops.frozen.kernels import activate

_SIZES = ["num_rows", "num_frames", "num_tokens"]  # one kernel serves all, also 1, which Triton makes a constant


@triton.jit
def _tile(num_rows, num_frames, num_tokens, WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    # Return the offsets [BLOCK_ROWS, BLOCK_WIDTH] of a program's tile in the first frame, where there is an element,
    # its features [BLOCK_WIDTH], and its number among the tiles of rows. Row b * N + n of num_rows is token n of clip
    # b. Program p = row tile * feature tiles + feature tile, as features lie side by side.
    feature_tiles: tl.constexpr = (WIDTH + BLOCK_WIDTH - 1) // BLOCK_WIDTH
    number = tl.program_id(0) // feature_tiles
    row = number * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    feature = tl.program_id(0) % feature_tiles * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    token = (row // num_tokens).to(tl.int64) * num_frames * num_tokens + row % num_tokens
    inside = (row < num_rows)[:, None] & (feature < WIDTH)[None, :]
    return token[:, None] * WIDTH + feature[None, :], inside, feature, number


@triton.jit
def _append(tiles, tile):
    return tiles + (tile,)  # noqa: RUF005


@triton.jit
def _taps(weight_ptr, bias_ptr, feature, WIDTH: tl.constexpr, KERNEL: tl.constexpr):
    # Return weight [W, K] as K rows, and bias [W] as one: [1, BLOCK_WIDTH] each.
    inside = feature < WIDTH
    taps = ()
    for k in tl.static_range(KERNEL):
        tap = tl.load(weight_ptr + feature * KERNEL + k, mask=inside, other=0.0).to(tl.float32)
        taps = _append(taps, tap[None, :])
    return taps, tl.load(bias_ptr + feature, mask=inside, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _zeros(KERNEL: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    # Return K tiles of zeros.
    tiles = ()
    for _ in tl.static_range(KERNEL):
        tiles = _append(tiles, tl.zeros((BLOCK_ROWS, BLOCK_WIDTH), tl.float32))
    return tiles


@triton.jit
def _frames(x_ptr, first, num_frames, stride_frame, inside, COUNT: tl.constexpr):
    # Return COUNT frames of x from `first` on, in the dtype of x; zeros behind the last.
    frames = ()
    for i in tl.static_range(COUNT):
        mask = inside & (first + i < num_frames)
        frames = _append(frames, tl.load(x_ptr + (first + i) * stride_frame, mask=mask, other=0.0))
    return frames


@triton.jit
def _first_window(
    h_ptr, num_frames, stride_frame, inside,
    KERNEL: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    # Return the window of the frame before the first: zeros, and the first C frames.
    window = _zeros(KERNEL, BLOCK_ROWS, BLOCK_WIDTH)
    first = _frames(h_ptr, 0, num_frames, stride_frame, inside, KERNEL // 2)
    for t in tl.static_range(KERNEL // 2):
        window = _append(window[1:], first[t].to(tl.float32))
    return window


@triton.jit
def _weighted(window, taps, FLIPPED: tl.constexpr, KERNEL: tl.constexpr):
    # Return sum_k taps[k] window[k], or with FLIPPED sum_k taps[k] window[K - 1 - k].
    total = taps[0] * window[KERNEL - 1 if FLIPPED else 0]
    for k in tl.static_range(1, KERNEL):
        total += taps[k] * window[KERNEL - 1 - k if FLIPPED else k]
    return total


@triton.jit(do_not_specialize=_SIZES)
def forward_kernel(
    h_ptr, weight_ptr, bias_ptr, out_ptr, num_rows, num_frames, num_tokens,
    WIDTH: tl.constexpr, KERNEL: tl.constexpr, EXACT_ERF: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    # out[t] = gelu(pre[t]),  pre[t] = bias + sum_k weight[:, k] h[t + k - C]
    #
    # of h and out, both contiguous [B, T, N, W], with h = 0 beyond the ends of a clip; weight [W, K], bias [W].
    offsets, inside, feature, _number = _tile(num_rows, num_frames, num_tokens, WIDTH, BLOCK_ROWS, BLOCK_WIDTH)
    taps, bias = _taps(weight_ptr, bias_ptr, feature, WIDTH, KERNEL)
    stride_frame = num_tokens.to(tl.int64) * WIDTH
    h_ptr += offsets
    out_ptr += offsets
    window = _first_window(h_ptr, num_frames, stride_frame, inside, KERNEL, BLOCK_ROWS, BLOCK_WIDTH)
    next_h = _frames(h_ptr, KERNEL // 2, num_frames, stride_frame, inside, STEP)
    for start in range(0, num_frames, STEP):
        h = next_h
        next_h = _frames(h_ptr, start + STEP + KERNEL // 2, num_frames, stride_frame, inside, STEP)
        for i in tl.static_range(STEP):
            window = _append(window[1:], h[i].to(tl.float32))
            value, _ = activate(bias + _weighted(window, taps, False, KERNEL), "gelu", EXACT_ERF)
            tl.store(out_ptr + (start + i) * stride_frame, value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def backward_kernel(
    d_out_ptr, h_ptr, weight_ptr, bias_ptr, d_h_ptr, d_weight_ptr, d_bias_ptr, num_rows, num_frames, num_tokens,
    WIDTH: tl.constexpr, KERNEL: tl.constexpr, EXACT_ERF: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    # With pre computed again as in `forward_kernel`, and d_pre = 0 beyond the ends of a clip,
    #
    #     d_pre[t] = d_out[t] gelu'(pre[t])
    #     d_h[t] = sum_k weight[:, k] d_pre[t + C - k]
    #     d_weight[:, k] = sum_t d_pre[t] h[t + k - C],  d_bias = sum_t d_pre[t]     added up over the rows of each tile
    #
    # of d_out, h and d_h, contiguous [B, T, N, W], weight [W, K] and bias [W]; d_weight [row tiles, W, K] and d_bias
    # [row tiles, W] are float32, and their sums over the tiles are the gradients.
    offsets, inside, feature, number = _tile(num_rows, num_frames, num_tokens, WIDTH, BLOCK_ROWS, BLOCK_WIDTH)
    taps, bias = _taps(weight_ptr, bias_ptr, feature, WIDTH, KERNEL)
    stride_frame = num_tokens.to(tl.int64) * WIDTH
    h_ptr += offsets
    d_out_ptr += offsets
    d_h_ptr += offsets
    window = _first_window(h_ptr, num_frames, stride_frame, inside, KERNEL, BLOCK_ROWS, BLOCK_WIDTH)
    next_h = _frames(h_ptr, KERNEL // 2, num_frames, stride_frame, inside, STEP)
    next_d_out = _frames(d_out_ptr, 0, num_frames, stride_frame, inside, STEP)
    gradients = _zeros(KERNEL, BLOCK_ROWS, BLOCK_WIDTH)  # the window of d_pre
    d_taps = _zeros(KERNEL, BLOCK_ROWS, BLOCK_WIDTH)
    nothing = tl.zeros((BLOCK_ROWS, BLOCK_WIDTH), tl.float32)
    d_bias = nothing
    for start in range(0, num_frames, STEP):
        h, d_out = next_h, next_d_out
        next_h = _frames(h_ptr, start + STEP + KERNEL // 2, num_frames, stride_frame, inside, STEP)
        next_d_out = _frames(d_out_ptr, start + STEP, num_frames, stride_frame, inside, STEP)
        for i in tl.static_range(STEP):
            window = _append(window[1:], h[i].to(tl.float32))
            _, slope = activate(bias + _weighted(window, taps, False, KERNEL), "gelu", EXACT_ERF)
            d_pre = d_out[i].to(tl.float32) * slope
            d_bias += d_pre
            added = ()
            for k in tl.static_range(KERNEL):
                added = _append(added, d_taps[k] + d_pre * window[k])
            d_taps = added
            gradients = _append(gradients[1:], d_pre)
            t = start + i - KERNEL // 2
            d_h = _weighted(gradients, taps, True, KERNEL).to(d_h_ptr.dtype.element_ty)
            tl.store(d_h_ptr + t * stride_frame, d_h, mask=inside & (t >= 0))
    for i in tl.static_range(KERNEL // 2):  # the last frames, whose windows end behind the clip
        gradients = _append(gradients[1:], nothing)
        t = num_frames + i - KERNEL // 2
        d_h = _weighted(gradients, taps, True, KERNEL).to(d_h_ptr.dtype.element_ty)
        tl.store(d_h_ptr + t * stride_frame, d_h, mask=inside & (t >= 0))
    column = number.to(tl.int64) * WIDTH + feature
    for k in tl.static_range(KERNEL):
        tl.store(d_weight_ptr + column * KERNEL + k, tl.sum(d_taps[k], 0), mask=feature < WIDTH)
    tl.store(d_bias_ptr + column, tl.sum(d_bias, 0), mask=feature < WIDTH)
