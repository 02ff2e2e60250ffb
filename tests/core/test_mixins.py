"""The modules around the blocks do what the image model's own do."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from aim_adapters.core.mixins import PatchProduct
from aim_adapters.core.patching import patch
from tests.core.cases import (
    block_of,
)

# Patches


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_patches_are_embedded_as_by_the_convolution(bias: bool, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    proj = nn.Conv2d(3, 8, (2, 4), (2, 4), bias=bias, dtype=torch.float64).requires_grad_(False)
    convolve, x = copy.deepcopy(proj), torch.randn(2, 3, 6, 8, dtype=torch.float64, requires_grad=True)
    proj.aim_shared = (block_of().aim.root_state,)  # type: ignore[assignment]
    patch(proj, PatchProduct)

    def compare(x: Tensor) -> None:
        ours, theirs = proj(x), convolve(x)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        weights = torch.randn_like(ours)
        (one,), (other,) = (torch.autograd.grad(out, x, weights) for out in (ours, theirs))
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)

    compare(x.to(memory_format=memory_format))
    compare(x[:, :, :5, :7])  # what is left over is cut off
    if bias:
        for each in (proj, convolve):
            nn.utils.parametrize.register_parametrization(each, "bias", Doubled())
        compare(x)
