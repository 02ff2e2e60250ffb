"""Outputs to compare to the bit where weights begin at different places in memory.

Of two tensors with equal values one may be allocated by PyTorch, at a multiple of 64 bytes, and the other be the pages
of a safetensors file, where it begins wherever the tensors before it end. On some CPUs MKL sums the product of a single
row or column in an order that depends on that (docs/speed.md), so two models with equal weights differ in the last
digit. What they compute is therefore compared between copies, all of which PyTorch allocates.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

ALIGNMENT = 64  # bytes: PyTorch allocates at multiples of it on a CPU


def is_aligned(tensor: Tensor) -> bool:
    """Return whether a tensor begins where PyTorch could have allocated it."""
    return tensor.data_ptr() % ALIGNMENT == 0


def run_aligned(model: nn.Module, images: Tensor) -> Any:
    """Run a copy of a model whose weights are all aligned; the model itself must agree to rounding.

    Args:
        model: Any model that returns a tensor; it is put in evaluation mode.
        images: Its input.
    """
    copied = copy.deepcopy(model.eval())
    assert all(map(is_aligned, [*copied.parameters(), *copied.buffers()]))
    with torch.no_grad():
        out = copied(images)
        torch.testing.assert_close(model(images), out)
    return out
