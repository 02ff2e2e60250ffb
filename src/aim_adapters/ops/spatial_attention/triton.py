"""Spatial attention as PyTorch operators that launch Triton kernels, on a packed projection as it was written.

The gradient comes back packed, as the projection's backward pass reads it. The operators have fake implementations,
gradients and FLOP formulas, so ``torch.compile``, CUDA graphs and counters know them. They are deterministic.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from triton import JITFunction

from aim_adapters.errors import UnsupportedKernelError
from aim_adapters.ops.device import shared_memory
from aim_adapters.ops.launch import launch, next_power_of_2
from aim_adapters.ops.operators import register_operator
from aim_adapters.ops.spatial_attention import kernels
from aim_adapters.ops.spatial_attention.tiles import MAX_WINDOW_TOKENS, Tiles, pieces, remainder, tiles_for

_LIBRARY = torch.library.Library("aim_adapters", "FRAGMENT")
_OPTIONS = "Tensor? bias, Tensor? mask, Tensor? index, float scale"
_SCHEMAS = {
    "spatial_attention": f"(Tensor qkv, {_OPTIONS}) -> (Tensor, Tensor)",
    "spatial_attention_backward": f"(Tensor d_out, Tensor qkv, Tensor o, Tensor lse, {_OPTIONS}) -> Tensor",
}


def spatial_attention(
    qkv: Tensor, *, scale: float, bias: Tensor | None, mask: Tensor | None, index: Tensor | None = None
) -> Tensor:
    """Attend within every frame, or window of one; the gradient is packed, as the projection is.

    Args:
        qkv: Queries, keys and values ``[F, N, 3, H, d]``, any strides; F frames or windows. With an index,
            ``[F, W*N, 3, H, d]``.
        scale: Factor on the scores.
        bias: Added to the scores, ``[H, N, N]``, or None; gets no gradient.
        mask: Added to the scores, ``[W, N, N]``; window f takes ``mask[f % W]``; or None; gets no gradient.
        index: Tokens of each window of a frame, int32 ``[W, N]``, N up to 64, every token in one; or None.

    Returns:
        ``[F, N, H, d]``, contiguous; with an index, ``[F, W*N, H, d]``.
    """
    out: Tensor = torch.ops.aim_adapters.spatial_attention(qkv, bias, mask, index, scale)[0]
    return out


def forward(
    qkv: Tensor,
    scale: float,
    bias: Tensor | None,
    mask: Tensor | None,
    *,
    index: Tensor | None = None,
    out: Tensor | None = None,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend within every frame, or window of one, outside of autograd.

    Args:
        qkv: Queries, keys and values ``[F, N, 3, H, d]``, bfloat16 or float16, any strides; F frames or windows. With
            an index, ``[F, W*N, 3, H, d]``.
        scale: Factor on the scores.
        bias: Added to the scores, ``[H, N, N]``, floating point, or None.
        mask: Added to the scores, ``[W, N, N]``, floating point; window f, or with an index window w of every frame,
            takes ``mask[f % W]`` or ``mask[w]``; or None.
        index: Tokens of each window of a frame, int32 ``[W, N]``, N up to 64, every token in one; or None.
        out: Where to put the output, in its shape and dtype, elements of a row side by side; made if None.
        tiles: Kind and sizes of the kernel; the fastest that fits if None.

    Returns:
        ``[F, N, H, d]``, contiguous, or ``out``; and for `backward` the logsumexp of the scores over the keys, float32
        ``[F, H, N]``, empty where N is at most 64.

    Raises:
        UnsupportedKernelError: A window has more than 64 tokens, or nothing fits the device's shared memory.
    """
    tiles = tiles or _tiles(qkv, bias, mask, index, backward=False)
    qkv = _with_adjacent_columns(qkv)
    o, lse = _outputs(qkv, index)
    if out is not None:
        o = out
    if qkv.numel() == 0:
        return o, lse
    kernel = {
        "window": kernels.window_forward,
        "resident": kernels.resident_forward,
        "streaming": kernels.streaming_forward,
    }[tiles.kind]
    tensors = qkv, o, lse, _contiguous(bias), _contiguous(mask)
    sizes = *qkv.stride()[:4], *o.stride()[:3], *_sizes(qkv, mask, index, tiles), scale, *_indices(index, tiles)
    programs, constants = _programs(qkv, mask, index, tiles), _constants(qkv, bias, mask, index, tiles)
    launch(kernel, programs, *tensors, *sizes, **constants)
    return o, lse


def backward(
    d_out: Tensor,
    qkv: Tensor,
    o: Tensor,
    lse: Tensor,
    scale: float,
    bias: Tensor | None,
    mask: Tensor | None,
    *,
    index: Tensor | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """Return the gradient of the packed projection. Bias and mask get none.

    Args:
        d_out: Gradient of the output, in its shape, any strides.
        qkv: As in `forward`.
        o: The output, any strides; not read where N is at most 64.
        lse: The logsumexp that `forward` returned, float32 ``[F, H, N]``.
        scale: As in `forward`.
        bias: As in `forward`.
        mask: As in `forward`.
        index: As in `forward`.
        tiles: Kind and sizes of the kernel; the fastest that fits if None.

    Returns:
        In shape and dtype of ``qkv``, contiguous.

    Raises:
        UnsupportedKernelError: A window has more than 64 tokens, or nothing fits the device's shared memory.
    """
    tiles = tiles or _tiles(qkv, bias, mask, index, backward=True)
    d_out, qkv, o = _with_adjacent_columns(d_out), _with_adjacent_columns(qkv), _with_adjacent_columns(o)
    d_qkv = _contiguous_like(qkv)
    if qkv.numel() == 0:
        return d_qkv
    tensors = d_out, qkv, o, lse, torch.empty_like(lse), _contiguous(bias), _contiguous(mask), d_qkv
    strides = *d_out.stride()[:3], *qkv.stride()[:4], *o.stride()[:3]
    sizes = *strides, *_sizes(qkv, mask, index, tiles), scale, *_indices(index, tiles)
    programs, constants = _programs(qkv, mask, index, tiles), _constants(qkv, bias, mask, index, tiles)
    if tiles.kind == "window":
        launch(kernels.window_backward, programs, *tensors, *sizes, **constants)
    elif tiles.kind == "resident":
        launch(kernels.resident_backward, 2 * programs, *tensors, *sizes, **constants)
    else:
        for of_keys in (False, True):  # the first launch writes delta, which the second reads
            launch(kernels.streaming_backward, programs, *tensors, *sizes, OF_KEYS=of_keys, **constants)
    return d_qkv


# Apart from the choice of an implementation, which compilers trace.
_tiles_once = functools.lru_cache(maxsize=1024)(tiles_for)


def _tokens(qkv: Tensor, index: Tensor | None) -> int:
    """Return the number of tokens of a sequence, N."""
    return qkv.shape[1] if index is None else index.shape[1]


def _tiles(qkv: Tensor, bias: Tensor | None, mask: Tensor | None, index: Tensor | None, *, backward: bool) -> Tiles:
    """Return the fastest tiles that fit in the device's shared memory, or raise `UnsupportedKernelError`."""
    tokens, dim = _tokens(qkv, index), qkv.shape[4]
    if index is not None and tokens > MAX_WINDOW_TOKENS:
        raise UnsupportedKernelError(
            f"the kernels take windows of up to {MAX_WINDOW_TOKENS} tokens by index, got {tokens}; use 'auto', which "
            "falls back, 'sdpa' or 'eager'"
        )
    shared = shared_memory(qkv.device.type)
    added = bias is not None or mask is not None
    tiles = _tiles_once(tokens, dim, added=added, backward=backward, shared=shared)
    if tiles is None:
        raise UnsupportedKernelError(
            f"no tile of {tokens} tokens, {dim} wide, fits in {shared // 1024} KiB of shared memory; choose 'auto', "
            "which falls back, 'sdpa' or 'eager'"
        )
    return tiles


def _programs(qkv: Tensor, mask: Tensor | None, index: Tensor | None, tiles: Tiles) -> int:
    """Return the number of programs of a forward launch."""
    frames, heads, windows = _sizes(qkv, mask, index, tiles)
    if tiles.kind == "window":
        return -(-frames // tiles.columns) * windows * heads
    return frames * heads * (-(-qkv.shape[1] // tiles.rows) if tiles.kind == "streaming" else 1)


def _sizes(qkv: Tensor, mask: Tensor | None, index: Tensor | None, tiles: Tiles) -> tuple[int, int, int]:
    """Return the numbers of frames, heads and windows; for a window kernel, the frames that have each window."""
    frames, heads = qkv.shape[0], qkv.shape[3]
    if index is not None:
        return frames, heads, index.shape[0]
    windows = 1 if mask is None else mask.shape[0]
    return frames // windows if tiles.kind == "window" else frames, heads, windows


def _indices(index: Tensor | None, tiles: Tiles) -> tuple[Tensor | None, ...]:
    """Return the argument that window kernels alone take."""
    return (_contiguous(index),) if tiles.kind == "window" else ()


def _constants(
    qkv: Tensor, bias: Tensor | None, mask: Tensor | None, index: Tensor | None, tiles: Tiles
) -> dict[str, Any]:
    """Return the arguments that kernels of a kind take by name."""
    tokens, dim = _tokens(qkv, index), qkv.shape[4]
    constants: dict[str, Any] = {
        "TOKENS": tokens,
        "HEAD_DIM": dim,
        "BLOCK_DIM": max(16, next_power_of_2(dim)),
        "BLOCK_ROWS": tiles.rows,
        "HAS_BIAS": bias is not None,
        "HAS_MASK": mask is not None,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
    if tiles.kind == "window":
        return constants | {"FRAMES": tiles.columns, "HAS_INDEX": index is not None}
    if tiles.kind != "streaming":
        return constants | {f"SIZE_{i}": size for i, size in enumerate(pieces(tokens, tiles.columns))}
    return constants | {"BLOCK_COLUMNS": tiles.columns, "REMAINDER": remainder(tokens, tiles.columns)}


def _with_adjacent_columns(x: Tensor) -> Tensor:
    """Return a tensor whose last dimension has stride 1, as kernels read it."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _contiguous_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _outputs(qkv: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return memory for the output and the logsumexp."""
    frames, length, _, heads, dim = qkv.shape
    lse_shape = (0,) if _tokens(qkv, index) <= MAX_WINDOW_TOKENS else (frames, heads, length)
    return qkv.new_empty((frames, length, heads, dim)), qkv.new_empty(lse_shape, dtype=torch.float32)


# Operators


def _forward(
    qkv: Tensor, bias: Tensor | None, mask: Tensor | None, index: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    return forward(qkv, scale, bias, mask, index=index)


def _backward(
    d_out: Tensor,
    qkv: Tensor,
    o: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    index: Tensor | None,
    scale: float,
) -> Tensor:
    return backward(d_out, qkv, o, lse, scale, bias, mask, index=index)


def _fake(
    qkv: Tensor, bias: Tensor | None, mask: Tensor | None, index: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    return _outputs(qkv, index)


def _fake_backward(d_out: Tensor, qkv: Tensor, *_: Any) -> Tensor:
    return _contiguous_like(qkv)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, bias, mask, index, ctx.scale = inputs
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        raise UnsupportedKernelError(
            "the kernels give bias and mask no gradient, and one of them requires it; use 'auto', which falls back, "
            "'sdpa' or 'eager'"
        )
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(qkv, bias, mask, index, *output)


def _backward_of_operator(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    qkv, bias, mask, index, o, lse = ctx.saved_tensors
    d_qkv = torch.ops.aim_adapters.spatial_attention_backward(d_out, qkv, o, lse, bias, mask, index, ctx.scale)
    return d_qkv, None, None, None, None


def _refuse_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise UnsupportedKernelError("attention='triton' has no second derivative; choose 'eager'")


def _flops(shape: torch.Size, index: torch.Size | None, products: int) -> int:
    """Return the FLOPs of a number of products of ``[N, N]`` with ``[N, d]``, for every head and window."""
    frames, length, _, heads, dim = shape
    return 2 * products * frames * length * (length if index is None else index[1]) * heads * dim


def _register() -> None:
    kinds: dict[str, tuple[Any, Any, int]] = {
        "spatial_attention": (_forward, _fake, 2),
        "spatial_attention_backward": (_backward, _fake_backward, 5),
    }
    for name, (run, fake, products) in kinds.items():
        gradient = name.endswith("backward")

        def count(*shapes: Any, _packed: int = int(gradient), _products: int = products, **_: Any) -> int:
            return _flops(shapes[_packed], shapes[-2], _products)  # the scale is last

        register_operator(
            _LIBRARY,
            name,
            _SCHEMAS[name],
            run=run,
            fake=fake,
            on_cpu=not isinstance(kernels.window_forward, JITFunction),
            backward=_refuse_second_derivative if gradient else _backward_of_operator,
            setup_context=None if gradient else _save_for_backward,
            flops=count,
        )


_register()
