"""Products of rows and weights, outside of autograd."""

from __future__ import annotations

import torch
from torch import Tensor

# PyTorch 2.8 and later return float32 from products of half precision.
_WIDE_PRODUCTS = "dtype" in torch.ops.aten.mm.overloads()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a linear layer to rows ``[M, K]``; the weight is ``[N, K]``, all of one dtype."""
    return x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)


def wide_product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b``, in float32 where a product of half precision can be returned so without a copy."""
    if a.is_cuda and a.dtype.itemsize == 2 and _WIDE_PRODUCTS:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b


def in_dtype(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a tensor in a dtype, if there is one."""
    return None if tensor is None else tensor.to(dtype)
