"""Matrices in float8, each row scaled so that its largest element is the largest float8 has, and their product.

A product ``a @ b.T`` takes both factors as rows: of ``a``, a scale each; of ``b``, a scale for each column of the
result. float8_e4m3fn serves gradients too: with a scale for each row, its 2^15 between the largest and the smallest
normal number are enough, and its third bit of mantissa halves the rounding that e5m2 would do.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DTYPE = torch.float8_e4m3fn
LARGEST = 448.0
LEAST = 1e-30  # the largest element of a row is taken to be no less: rows of zeros stay zeros


class Scaled(NamedTuple):
    """A matrix whose rows are scaled.

    Attributes:
        values: ``[M, K]``, float8_e4m3fn, contiguous.
        scale: What to multiply each row by ``[M, 1]``, float32.
    """

    values: Tensor
    scale: Tensor


def product(a: Scaled, b: Scaled, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Multiply two matrices: ``a @ b.T + bias``, summed in float32.

    On a CPU it multiplies in float32 (float64 for float64) what the float8 numbers stand for.

    Args:
        a: ``[M, K]``, K a multiple of 16.
        b: ``[N, K]``, N a multiple of 16.
        bias: ``[N]`` in ``dtype``, or None.
        dtype: Dtype of the result; on a GPU ``torch.bfloat16``.

    Returns:
        ``[M, N]`` in ``dtype``.
    """
    if a.values.is_cuda and len(a.values):
        return torch._scaled_mm(
            a.values, b.values.T, a.scale, b.scale.T, bias=bias, out_dtype=dtype, use_fast_accum=True
        )
    wide = torch.promote_types(dtype, torch.float32)
    out = (a.values.to(wide) * a.scale.to(wide)) @ (b.values.to(wide) * b.scale.to(wide)).T
    return (out if bias is None else out + bias).to(dtype)
