"""Compute the row-wise parts of a frozen block by Triton kernels, for float32, bfloat16 and float16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from aim_adapters.ops.frozen import kernels


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """Normalise rows; statistics in float32.

    Args:
        x: Tokens ``[M, D]``, contiguous, D at most 8192.
        weight: ``[D]``, any floating dtype, or None.
        bias: ``[D]``, any floating dtype, or None.
        eps: Added to the variance.
        dtype: Dtype of the result.

    Returns:
        ``[M, D]`` in ``dtype``.
    """
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    grid, options = _rows(x)
    with torch.cuda.device_of(x):
        kernels.layer_norm_kernel[grid](
            x, weight, bias, out, x.shape[0], eps,
            HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None, **options,
        )  # fmt: skip
    return out


def layer_norm_backward(d_h: Tensor, x: Tensor, weight: Tensor | None, eps: float, d_residual: Tensor | None) -> Tensor:
    """Return the gradient by the input of a LayerNorm whose weight and bias are frozen.

    Args:
        d_h: Gradient of the normalised tokens ``[M, D]``, contiguous.
        x: What was normalised ``[M, D]``, contiguous, D at most 8192.
        weight: ``[D]``, any floating dtype, or None.
        eps: Added to the variance.
        d_residual: Gradient that reaches ``x`` past the LayerNorm, added, ``[M, D]`` in the dtype of ``x``, or None.

    Returns:
        ``[M, D]`` in the dtype of ``x``.
    """
    d_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid, options = _rows(x)
    with torch.cuda.device_of(x):
        kernels.layer_norm_backward_kernel[grid](
            d_h, x, weight, d_residual, d_x, x.shape[0], eps,
            HAS_WEIGHT=weight is not None, HAS_RESIDUAL=d_residual is not None, **options,
        )  # fmt: skip
    return d_x


def activation(pre: Tensor, kind: str) -> Tensor:
    """Apply an MLP's activation.

    Args:
        pre: Its input ``[M, K]``, contiguous.
        kind: ``"gelu"``, ``"gelu_tanh"``, ``"quick_gelu"``, ``"relu"`` or ``"silu"``.

    Returns:
        ``[M, K]`` in the dtype of ``pre``.
    """
    out = torch.empty(pre.shape, dtype=pre.dtype, device=pre.device)
    grid, options = _elements(pre, kind)
    with torch.cuda.device_of(pre):
        kernels.activation_kernel[grid](pre, out, pre.numel(), **options)
    return out


def activation_backward(d_act: Tensor, pre: Tensor, kind: str) -> Tensor:
    """Multiply a gradient by the activation's derivative, in place.

    Args:
        d_act: Gradient of the activation's output ``[M, K]``, contiguous; overwritten.
        pre: The activation's input ``[M, K]``, contiguous, same dtype.
        kind: ``"gelu"``, ``"gelu_tanh"``, ``"quick_gelu"``, ``"relu"`` or ``"silu"``.

    Returns:
        ``d_act`` itself.
    """
    grid, options = _elements(pre, kind)
    with torch.cuda.device_of(pre):
        kernels.activation_backward_kernel[grid](d_act, pre, pre.numel(), **options)
    return d_act


def tile(width: int) -> tuple[int, int]:
    """Return the rows and the warps of a program that holds whole rows: 32 elements of them in each thread.

    Up to 1024 elements one warp holds a row, so that it waits for no other.

    Args:
        width: D, up to the next power of two.
    """
    return max(1, 1024 // width), min(max(1, width // 1024), 8)


BLOCK, BLOCK_WARPS = 2048, 4  # elements and warps of a program that computes elements


def _rows(x: Tensor) -> tuple[tuple[int], dict[str, Any]]:
    rows, warps = tile(width := next_power_of_2(x.shape[1]))
    return (cdiv(x.shape[0], rows),), {"D": x.shape[1], "WIDTH": width, "ROWS": rows, "num_warps": warps}


def _elements(pre: Tensor, kind: str) -> tuple[tuple[int], dict[str, Any]]:
    options = {"KIND": kind, "EXACT": pre.dtype.itemsize == 4, "BLOCK": BLOCK, "num_warps": BLOCK_WARPS}
    return (cdiv(pre.numel(), BLOCK),), options
