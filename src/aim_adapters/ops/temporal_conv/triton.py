"""Convolution over frames and GELU as PyTorch operators that launch Triton kernels.

The operators have fake implementations, gradients and FLOP formulas, so ``torch.compile``, CUDA graphs and counters
know them. They are deterministic.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from triton import JITFunction

from aim_adapters.errors import UnsupportedKernelError
from aim_adapters.ops.launch import cdiv, launch
from aim_adapters.ops.operators import register_operator
from aim_adapters.ops.temporal_conv import kernels

_WARPS = 4

_LIBRARY = torch.library.Library("aim_adapters", "FRAGMENT")
_INPUTS = "Tensor h, Tensor weight, Tensor bias, int num_frames"
_SCHEMAS = {
    "temporal_conv_gelu": f"({_INPUTS}) -> Tensor",
    "temporal_conv_gelu_backward": f"(Tensor d_out, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
}


def temporal_conv_gelu(h: Tensor, weight: Tensor, bias: Tensor, *, num_frames: int) -> Tensor:
    """Convolve over frames and apply GELU.

    Args:
        h: ``[B*T, ..., W]``, float32, bfloat16 or float16.
        weight: ``[W, K]``, any floating dtype, K odd.
        bias: ``[W]``, any floating dtype.
        num_frames: T.

    Returns:
        ``[B*T, ..., W]``, contiguous.
    """
    out: Tensor = torch.ops.aim_adapters.temporal_conv_gelu(h, weight, bias, num_frames)
    return out


# Kernel launches


def forward(h: Tensor, weight: Tensor, bias: Tensor, num_frames: int) -> Tensor:
    """Compute `temporal_conv_gelu` outside of autograd."""
    out = _contiguous_like(h)
    sizes, programs, options = _launch_options(h, weight, num_frames, backward=False)
    launch(
        kernels.forward_kernel, programs,
        h.contiguous(), weight.contiguous(), bias.contiguous(), out, *sizes, **options,
    )  # fmt: skip
    return out


def backward(d_out: Tensor, h: Tensor, weight: Tensor, bias: Tensor, num_frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of h, weight and bias."""
    d_h = _contiguous_like(h)
    sizes, programs, options = _launch_options(h, weight, num_frames, backward=True)
    row_tiles = cdiv(sizes[0], options["BLOCK_ROWS"])
    d_weight, d_bias = (
        torch.empty((row_tiles, *x.shape), dtype=torch.float32, device=h.device) for x in (weight, bias)
    )
    launch(
        kernels.backward_kernel, programs,
        d_out.contiguous(), h.contiguous(), weight.contiguous(), bias.contiguous(), d_h, d_weight, d_bias,
        *sizes, **options,
    )  # fmt: skip
    return d_h, d_weight.sum(0).to(weight.dtype), d_bias.sum(0).to(bias.dtype)


def _launch_options(
    h: Tensor, weight: Tensor, num_frames: int, *, backward: bool
) -> tuple[tuple[int, int, int], int, dict[str, Any]]:
    """Return the sizes that a kernel takes, the number of its programs, and its constants."""
    width, kernel = weight.shape
    tokens = math.prod(h.shape[1:-1])
    rows = len(h) // num_frames * tokens
    options = tile(width, kernel, num_frames, backward=backward)
    programs = cdiv(rows, options["BLOCK_ROWS"]) * cdiv(width, options["BLOCK_WIDTH"])
    options |= {"WIDTH": width, "KERNEL": kernel, "EXACT_ERF": h.dtype.itemsize == 4}
    return (rows, num_frames, tokens), programs, options


def tile(width: int, kernel: int, num_frames: int, *, backward: bool) -> dict[str, int]:
    """Return the sizes of a tile and how a program computes it.

    Args:
        width: W.
        kernel: K.
        num_frames: T.
        backward: Whether of the backward pass, which keeps three windows in registers.
    """
    # Elements of a thread: as many as its registers hold windows of.
    windows, steps = (3, (2, 1)) if backward else (1, (4, 2, 1))
    elements = 4 if windows * kernel <= 15 else 2 if windows * kernel <= 27 else 1
    # Of features, the widest tile that wastes the fewest lanes on those that are not there.
    block = min((64, 32, 16), key=lambda size: cdiv(width, size) * size)
    return {
        "BLOCK_WIDTH": block,
        "BLOCK_ROWS": _WARPS * 32 * elements // block,
        "STEP": next(step for step in steps if num_frames % step == 0),
        "num_warps": _WARPS,
    }


def _contiguous_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


# Operators


def _fake(h: Tensor, weight: Tensor, bias: Tensor, num_frames: int) -> Tensor:
    return _contiguous_like(h)


def _fake_backward(
    d_out: Tensor, h: Tensor, weight: Tensor, bias: Tensor, num_frames: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _contiguous_like(h), _contiguous_like(weight), _contiguous_like(bias)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.num_frames = inputs
    ctx.save_for_backward(*tensors)


def _backward_of_operator(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.aim_adapters.temporal_conv_gelu_backward(d_out, *ctx.saved_tensors, ctx.num_frames)
    return (*gradients, None)


def _refuse_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise UnsupportedKernelError(
        "implementation='triton' has no second derivative; choose 'eager', by set_attention for a whole model"
    )


def _flops(shape: torch.Size, weight: torch.Size, num_frames: int, sums: int) -> int:
    """Return the FLOPs of a number of sums over the taps that can meet a frame, for every element."""
    return 2 * sums * math.prod(shape) * min(weight[1], 2 * num_frames - 1)


def _register() -> None:
    kinds: dict[str, tuple[Any, Any, int]] = {
        "temporal_conv_gelu": (forward, _fake, 1),
        "temporal_conv_gelu_backward": (backward, _fake_backward, 3),
    }
    for name, (run, fake, sums) in kinds.items():
        gradient = name.endswith("backward")

        def count(*shapes: Any, _first: int = int(gradient), _sums: int = sums, **_: Any) -> int:
            h, weight, _, num_frames = shapes[_first:]
            return _flops(h, weight, num_frames, _sums)

        register_operator(
            _LIBRARY,
            name,
            _SCHEMAS[name],
            run=run,
            fake=fake,
            on_cpu=not isinstance(kernels.forward_kernel, JITFunction),
            backward=_refuse_second_derivative if gradient else _backward_of_operator,
            setup_context=None if gradient else _save_for_backward,
            flops=count,
        )


_register()
