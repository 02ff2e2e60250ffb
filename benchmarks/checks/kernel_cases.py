"""Sizes at which the library's kernels are compiled: what models have, and the largest that the kernels claim."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from aim_adapters.ops import spatial_attention, temporal_attention
from aim_adapters.ops.bottleneck import Layer, padded
from aim_adapters.ops.bottleneck import triton as bottleneck
from aim_adapters.ops.device import is_crowded
from aim_adapters.ops.frozen import InnerNorm, triton_fp8
from aim_adapters.ops.frozen import triton as frozen
from aim_adapters.ops.heads import triton as heads
from aim_adapters.ops.heads.api import Heads
from aim_adapters.ops.spatial_attention import triton as spatial
from aim_adapters.ops.temporal_attention import triton as temporal
from aim_adapters.ops.temporal_conv import triton as conv
from benchmarks.checks.compiling import Architecture

BF16, FP32 = torch.bfloat16, torch.float32
# Of temporal attention: frames, width of a head, dtype, bias.
FRAMES, DIMS = (1, 8, 12, 16, 32, 48, 64, 96, 128), (8, 16, 24, 32, 40, 64, 72, 80, 88, 96, 128)
TEMPORAL = [
    (8, 64, BF16, False),
    (8, 64, FP32, False),
    (16, 32, BF16, True),
    (32, 80, BF16, False),
    (64, 64, BF16, False),
    (64, 64, FP32, True),
    (64, 128, BF16, True),
    (128, 16, BF16, True),
    (128, 64, BF16, False),
    (128, 128, BF16, True),
]
# Of spatial attention: tokens, width of a head, bias, mask, index.
TOKENS = (1, 16, 17, 49, 50, 64, 65, 128, 145, 196, 197, 208, 209, 257, 272, 273, 577, 1025)
SPATIAL = [
    (49, 32, True, True, True),
    (64, 128, True, True, False),
    (50, 64, False, False, False),
    *((tokens, 64, False, False, False) for tokens in (197, 208, 257, 272, 577)),
    *((tokens, dim, True, True, False) for tokens in (197, 272) for dim in (64, 128)),
    (257, 80, False, False, False),
    (577, 128, True, False, False),
]
WIDTHS, UNITS, MOST_FEATURES, MOST_UNITS = (768, 1024), (3072, 4304), 8192, 16384
ADAPTERS = (192, 352, 2048, 4096)
# Of the convolution over frames: features, taps.
CONVOLUTIONS = ((96, 3), (192, 3), (192, 5), (25, 7), (96, 9))


class Case(NamedTuple):
    """Launches of kernels at one size.

    Attributes:
        name: What is computed, and the size.
        run: Launches them, on tensors of the meta device.
        refused: Says why the library's table does not take the kernels on a GPU, or None if it does.
    """

    name: str
    run: Callable[[], object]
    refused: Callable[[Architecture], str | None] = lambda _: None


def cases(*, thorough: bool = False) -> Iterator[Case]:
    """Yield the cases; thoroughly, every kind of size that is told apart."""
    for each in product(FRAMES, DIMS, (BF16, FP32), (False, True)) if thorough else TEMPORAL:
        yield temporal_case(*each)
    added = ((False, False, False), (True, False, False), (True, True, False))
    every = ((tokens, dim, *more) for tokens in TOKENS for dim in DIMS for more in added)
    for tokens, dim, bias, mask, index in every if thorough else SPATIAL:
        yield spatial_case(tokens, dim, bias=bias, mask=mask, index=index)
    for width in (*WIDTHS, MOST_FEATURES):
        for dtype in (BF16, FP32):
            yield Case(f"frozen norms, {width} wide, {_name(dtype)}", partial(_norms, width, dtype))
        yield Case(f"frozen norms in float8, {width} wide", partial(_norms_fp8, width), _float8)
    for units in (*UNITS, MOST_UNITS):
        for dtype in (BF16, FP32):
            yield Case(f"activations, {units} units, {_name(dtype)}", partial(_activations, units, dtype))
            yield Case(f"activations and their norm, {units} units, {_name(dtype)}", partial(_normed, units, dtype))
        yield Case(f"activations in float8, {units} units", partial(_activations_fp8, units), _float8)
    for dim in (64, 128):
        yield Case(f"norms and rotation of heads, {dim} wide", partial(_heads, dim))
    for width in ADAPTERS:
        for dtype in (BF16, FP32):
            yield Case(f"adapter, {width} wide, {_name(dtype)}", partial(_adapter, width, dtype))
    for width, kernel in CONVOLUTIONS:
        for dtype in (BF16, FP32):
            name = f"convolution over frames, {width} wide, {kernel} taps, {_name(dtype)}"
            yield Case(name, partial(_convolution, width, kernel, dtype))


def temporal_case(frames: int, dim: int, dtype: torch.dtype, bias: bool) -> Case:
    """Return temporal attention of a packed projection, forward and backward."""

    def run() -> None:
        qkv = _empty(2 * frames, 197, 3, 12, dim, dtype=dtype)
        added = _empty(12, frames, frames, dtype=FP32) if bias else None
        temporal.packed_forward(qkv, added, frames, 0.125)
        temporal.packed_backward(_empty(2 * frames, 197, 12, dim, dtype=dtype), qkv, added, frames, 0.125)

    def refused(gpu: Architecture) -> str | None:
        crowded = is_crowded(*divmod(gpu.sm, 10))
        case = temporal_attention.Case("cuda", dtype, dim, frames, None, gpu.bytes, biased=bias, crowded=crowded)
        choice = temporal_attention.choose("auto", case)
        return None if choice.implementation == "triton" else choice.reason

    what = f"temporal attention, {frames} frames, {dim} wide, {_name(dtype)}"
    return Case(what + (", bias" if bias else ""), run, refused)


def spatial_case(tokens: int, dim: int, *, bias: bool, mask: bool, index: bool) -> Case:
    """Return spatial attention, forward and backward."""
    windows = 4 if index else 1

    def run() -> None:
        qkv = _empty(8, windows * tokens, 3, 12, dim)
        added = (_empty(12, tokens, tokens, dtype=FP32) if bias else None, None)
        if mask:
            added = added[0], _empty(4, tokens, tokens, dtype=FP32)
        cut = torch.empty(windows, tokens, dtype=torch.int32, device="meta") if index else None
        out, lse = spatial.forward(qkv, 0.125, *added, index=cut)
        spatial.backward(_empty(*out.shape), qkv, out, lse, 0.125, *added, index=cut)

    def refused(gpu: Architecture) -> str | None:
        case = spatial_attention.Case("cuda", BF16, dim, tokens, None, gpu.bytes, added=bias or mask, indexed=index)
        choice = spatial_attention.choose("auto", case)
        return None if choice.implementation == "triton" else choice.reason

    more = "".join(f", {name}" for name, given in (("bias", bias), ("mask", mask), ("index", index)) if given)
    return Case(f"spatial attention, {tokens} tokens, {dim} wide{more}", run, refused)


def _norms(width: int, dtype: torch.dtype) -> None:
    x, weight = _empty(256, width, dtype=dtype), _empty(width, dtype=FP32)
    frozen.layer_norm(x, weight, weight, 1e-6, dtype)
    frozen.add_layer_norm(x, x, weight, weight, 1e-6, dtype)
    frozen.layer_norm_backward(x, x, weight, 1e-6, x)
    frozen.add(x, x)


def _norms_fp8(width: int) -> None:
    x, weight = _empty(256, width), _empty(width, dtype=FP32)
    triton_fp8.quantize(x)
    triton_fp8.layer_norm(x, x, weight, weight, 1e-6, BF16)


def _activations(units: int, dtype: torch.dtype) -> None:
    for kind in ("gelu", "quick_gelu"):
        pre = _empty(256, units, dtype=dtype)
        frozen.activation(pre, kind)
        frozen.activation_backward(_empty(256, units, dtype=dtype), pre, kind)


def _normed(units: int, dtype: torch.dtype) -> None:
    pre, value, out = (_empty(256, units, dtype=dtype) for _ in range(3))
    weight = _empty(units, dtype=FP32)
    inner = InnerNorm(weight, weight, 1e-6, "layer", units)
    frozen.activation_norm(pre, "silu", inner, out, value)
    frozen.activation_norm_backward(out, pre, "silu", inner, value, _empty(256, units, dtype=dtype))


def _heads(dim: int) -> None:
    qkv, weight, angles = _empty(8, 197, 3, 12, dim), _empty(dim, dtype=FP32), _empty(196, dim, dtype=FP32)
    given = Heads("layer", 1e-6, weight, weight, weight, weight, "halves", angles, angles)
    heads.prepare(qkv, given)
    heads.prepare_backward(_empty(8, 197, 3, 12, dim), qkv, given)


def _activations_fp8(units: int) -> None:
    triton_fp8.activation(_empty(256, units), "gelu")
    triton_fp8.activation_backward(_empty(256, units), _empty(256, units), "gelu")
    triton_fp8.quantize_columns(_empty(units, 768))


def _adapter(width: int, dtype: torch.dtype) -> None:
    columns, features = padded(width), 768
    pre, out = _empty(256, width, dtype=dtype), _empty(256, columns, dtype=dtype)
    factor = _empty(2, dtype=FP32)
    bottleneck.hidden(pre, out, factor, 128, 0.5, "gelu")
    for activation in ("none", "gelu"):
        sums = bottleneck.hidden_backward(_empty(256, width, dtype=dtype), pre, out, factor, 128, 0.5, activation)
    bias = _empty(features, dtype=dtype)
    d_down, d_up = _empty(width, features, dtype=dtype), _empty(features, columns, dtype=dtype)
    bottleneck.gradients(d_down, sums, d_up, bias)
    up, down = _empty(features, width, dtype=FP32), _empty(width, features, dtype=FP32)
    bottleneck.widened(_empty(features, features, dtype=dtype), up, bias, dtype)
    layer = Layer(_empty(features, features, dtype=dtype), bias)
    bottleneck.joined((layer,), Layer(down, _empty(width, dtype=FP32)), dtype)


def _convolution(width: int, kernel: int, dtype: torch.dtype) -> None:
    h, weight, bias = _empty(8, 1, width, dtype=dtype), _empty(width, kernel, dtype=FP32), _empty(width, dtype=FP32)
    conv.forward(h, weight, bias, 8)  # of one token, as Triton makes a constant of 1 where it may
    conv.backward(_empty(8, 1, width, dtype=dtype), h, weight, bias, 8)


def _float8(gpu: Architecture) -> str | None:
    return None if gpu.sm >= 89 else "float8 needs compute capability 8.9"


def _empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
