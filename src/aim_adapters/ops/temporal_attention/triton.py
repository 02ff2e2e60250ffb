"""Temporal attention as PyTorch operators that launch Triton kernels, on tensors as the projection wrote them.

Two forms: queries, keys and values of any strides, or one packed ``[B*T, N, 3, H, d]`` whose gradient comes back
packed, as the projection's backward pass reads it. The operators have fake implementations, gradients and FLOP
formulas, so ``torch.compile``, CUDA graphs and counters know them. They are deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from aim_adapters.errors import UnsupportedKernelError
from aim_adapters.ops.launch import launch, next_power_of_2
from aim_adapters.ops.operators import register_operator
from aim_adapters.ops.temporal_attention import kernels
from aim_adapters.ops.temporal_attention.tiles import columns, smallest_tile

# The precision of products. On NVIDIA's GPUs a float32 product is three TF32 products on the tensor cores; without them
# a large tile takes a minute to compile. AMD's compiler refuses these names, even where half precision ignores them.
_HALF, _EXACT = ("ieee", "ieee") if torch.version.hip is not None else ("tf32", "tf32x3")
_INTERPRETED = kernels.forward is kernels.forward_kernel

_LIBRARY = torch.library.Library("aim_adapters", "FRAGMENT")
_OPTIONS = "Tensor? bias, int num_frames, float scale"
_GRADIENT = "Tensor d_out"
_SCHEMAS = {
    "temporal_attention": f"(Tensor q, Tensor k, Tensor v, {_OPTIONS}) -> Tensor",
    "temporal_attention_backward": f"({_GRADIENT}, Tensor q, Tensor k, Tensor v, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    "temporal_attention_packed": f"(Tensor qkv, {_OPTIONS}) -> Tensor",
    "temporal_attention_packed_backward": f"({_GRADIENT}, Tensor qkv, {_OPTIONS}) -> (Tensor, Tensor)",
}


def temporal_attention(
    q: Tensor, k: Tensor, v: Tensor, *, num_frames: int, scale: float, bias: Tensor | None
) -> Tensor:
    """Attend over frames; the gradients of queries, keys and values are contiguous.

    Args:
        q: Queries ``[B*T, N, H, d]``, any strides.
        k: Keys ``[B*T, N, G, d]``, H a multiple of G.
        v: Values ``[B*T, N, G, d]``.
        num_frames: T, at most 128.
        scale: Factor on the scores.
        bias: Added to the scores, ``[H, T, T]``, or None.

    Returns:
        ``[B*T, N, H, d]``, contiguous.
    """
    out: Tensor = torch.ops.aim_adapters.temporal_attention(q, k, v, bias, num_frames, scale)
    return out


def temporal_attention_packed(qkv: Tensor, *, num_frames: int, scale: float, bias: Tensor | None) -> Tensor:
    """Attend over frames; the gradient is packed, as the projection is.

    Args:
        qkv: Queries, keys and values ``[B*T, N, 3, H, d]``, any strides.
        num_frames: T, at most 128.
        scale: Factor on the scores.
        bias: Added to the scores, ``[H, T, T]``, or None.

    Returns:
        ``[B*T, N, H, d]``, contiguous.
    """
    out: Tensor = torch.ops.aim_adapters.temporal_attention_packed(qkv, bias, num_frames, scale)
    return out


def packed_forward(qkv: Tensor, bias: Tensor | None, num_frames: int, scale: float) -> Tensor:
    """Compute `temporal_attention_packed` outside of autograd."""
    return _packed(qkv, bias, num_frames, scale)


def packed_backward(
    d_out: Tensor, qkv: Tensor, bias: Tensor | None, num_frames: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a packed projection and of the bias, and the output, computed again on the way."""
    out = _contiguous_like(d_out)
    d_qkv, d_bias = _packed_backward(d_out, qkv, bias, num_frames, scale, out)
    return d_qkv, d_bias, out


# Kernel launches


def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, num_frames: int, scale: float) -> Tensor:
    q, k, v = _with_adjacent_columns(q), _with_adjacent_columns(k), _with_adjacent_columns(v)
    out = _contiguous_like(q)
    grid, options = _grid_and_constants(q, k, bias, num_frames, tiles=1)
    launch(
        kernels.forward, grid,
        q, k, v, out, _contiguous(bias),
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
        q.shape[1], q.shape[2], scale, **options,
    )  # fmt: skip
    return out


def _backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    num_frames: int,
    scale: float,
    into: tuple[Tensor, Tensor, Tensor],
    out: Tensor | None = None,
) -> Tensor:
    """Write the gradients of q, k and v into given tensors, and return the gradient of the bias.

    Args:
        d_out: Gradient of the output ``[B*T, N, H, d]``.
        q: Queries ``[B*T, N, H, d]``.
        k: Keys ``[B*T, N, G, d]``.
        v: Values ``[B*T, N, G, d]``.
        bias: Added to the scores, ``[H, T, T]``, or None.
        num_frames: T.
        scale: Factor on the scores.
        into: Where to write the gradients of q, k and v, each ``[B*T, N, H, d]``: one per query head.
        out: Where to write the output ``[B*T, N, H, d]``, or None.

    Returns:
        ``[H, T, T]`` in the dtype of ``bias``; empty without one.
    """
    d_out, q, k, v = (_with_adjacent_columns(x) for x in (d_out, q, k, v))
    tokens, heads = q.shape[1:3]
    tiles = 1 if bias is None else 8  # fewer partial sums to write and add up
    grid, options = _grid_and_constants(q, k, bias, num_frames, tiles=tiles)
    partial = None
    if bias is not None:
        programs = grid({"BLOCK_ROWS": smallest_tile(num_frames)})
        partial = q.new_empty((programs // heads, heads, num_frames, num_frames), dtype=torch.float32)
    d_q, d_k, d_v = into
    launch(
        kernels.backward, grid,
        d_out, q, k, v, _contiguous(bias), d_q, d_k, d_v, partial, out,
        *d_out.stride()[:3], *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        *d_q.stride()[:3], *d_k.stride()[:3], *d_v.stride()[:3], *(d_out if out is None else out).stride()[:3],
        tokens, heads, scale,
        HAS_OUT=out is not None,
        BIAS_DOT_PRECISION=_EXACT, BLOCK_FRAMES=max(16, next_power_of_2(num_frames)), TILES=tiles, **options,
    )  # fmt: skip
    return q.new_empty(0) if partial is None or bias is None else partial.sum(0).to(bias.dtype)


def _grid_and_constants(
    q: Tensor, k: Tensor, bias: Tensor | None, num_frames: int, *, tiles: int
) -> tuple[Any, dict[str, Any]]:
    """Return the grid as a function of the tile's rows, and the constants that both kernels share."""
    frames, tokens, heads, dim = q.shape

    def grid(meta: Mapping[str, Any]) -> int:
        sequences = meta["BLOCK_ROWS"] // num_frames * tiles
        return int(frames // num_frames * -(-tokens // sequences) * heads)

    block, rest = columns(num_frames, dim)
    options: dict[str, Any] = {
        "FRAMES": num_frames,
        "HEAD_DIM": dim,
        "BLOCK_DIM": block,
        "REST_DIM": rest,
        "QUERY_HEADS_PER_KV_HEAD": heads // k.shape[2],
        "HAS_BIAS": bias is not None,
        "DOT_PRECISION": _HALF if q.dtype.itemsize < 4 else _EXACT,
    }
    if _INTERPRETED:  # tiles are not tuned
        options["BLOCK_ROWS"] = smallest_tile(num_frames)
    return grid, options


def _with_adjacent_columns(x: Tensor) -> Tensor:
    """Return a tensor whose last dimension has stride 1, as kernels read it."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _contiguous(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()


def _contiguous_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


# Operators


def _attention_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, num_frames: int, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    into = (_contiguous_like(q), _contiguous_like(q), _contiguous_like(q))
    d_bias = _backward(d_out, q, k, v, bias, num_frames, scale, into)
    d_q, d_k, d_v = into
    shared = q.shape[2] // k.shape[2]
    if shared > 1:  # each key/value head served several query heads
        d_k, d_v = (x.unflatten(2, (-1, shared)).sum(3) for x in (d_k, d_v))
    return d_q, d_k, d_v, d_bias


def _packed(qkv: Tensor, bias: Tensor | None, num_frames: int, scale: float) -> Tensor:
    q, k, v = qkv.unbind(2)
    return _forward(q, k, v, bias, num_frames, scale)


def _packed_backward(
    d_out: Tensor, qkv: Tensor, bias: Tensor | None, num_frames: int, scale: float, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    d_qkv = _contiguous_like(qkv)
    d_q, d_k, d_v = d_qkv.unbind(2)
    q, k, v = qkv.unbind(2)
    d_bias = _backward(d_out, q, k, v, bias, num_frames, scale, (d_q, d_k, d_v), out)
    return d_qkv, d_bias


def _fake(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, num_frames: int, scale: float) -> Tensor:
    return _contiguous_like(q)


def _fake_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, num_frames: int, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _contiguous_like(q), _contiguous_like(k), _contiguous_like(v), _fake_bias(q, bias)


def _fake_packed(qkv: Tensor, bias: Tensor | None, num_frames: int, scale: float) -> Tensor:
    frames, tokens, _, heads, dim = qkv.shape
    return qkv.new_empty((frames, tokens, heads, dim))


def _fake_packed_backward(
    d_out: Tensor, qkv: Tensor, bias: Tensor | None, num_frames: int, scale: float
) -> tuple[Tensor, Tensor]:
    return _contiguous_like(qkv), _fake_bias(qkv, bias)


def _fake_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(0) if bias is None else torch.empty(bias.shape, dtype=bias.dtype, device=bias.device)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.num_frames, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward_of_operator(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, bias = ctx.saved_tensors
    packed = len(tensors) == 1
    name = "temporal_attention_packed_backward" if packed else "temporal_attention_backward"
    *gradients, d_bias = getattr(torch.ops.aim_adapters, name)(d_out, *tensors, bias, ctx.num_frames, ctx.scale)
    return (*gradients, None if bias is None else d_bias, None, None)


def _refuse_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise UnsupportedKernelError(
        "attention='triton' has no second derivative; choose 'eager', by set_attention for a whole model"
    )


def _flops(shape: torch.Size, num_frames: int, products: int) -> int:
    """Return the FLOPs of a number of products of ``[T, T]`` with ``[T, d]``, for every token and head."""
    frames, tokens, heads, dim = shape[0], shape[1], shape[-2], shape[-1]
    return 2 * products * frames * num_frames * tokens * heads * dim


def _register() -> None:
    kinds: dict[str, tuple[Any, Any, int]] = {
        "temporal_attention": (_forward, _fake, 2),
        "temporal_attention_backward": (_attention_backward, _fake_backward, 5),
        "temporal_attention_packed": (_packed, _fake_packed, 2),
        "temporal_attention_packed_backward": (_packed_backward, _fake_packed_backward, 5),
    }
    for name, (run, fake, products) in kinds.items():
        gradient = name.endswith("backward")

        def count(*shapes: Any, _first: int = int(gradient), _products: int = products, **_: Any) -> int:
            num_frames = next(argument for argument in shapes if isinstance(argument, int))
            return _flops(shapes[_first], num_frames, _products)

        register_operator(
            _LIBRARY,
            name,
            _SCHEMAS[name],
            run=run,
            fake=fake,
            on_cpu=_INTERPRETED,
            backward=_refuse_second_derivative if gradient else _backward_of_operator,
            setup_context=None if gradient else _save_for_backward,
            flops=count,
        )


_register()
