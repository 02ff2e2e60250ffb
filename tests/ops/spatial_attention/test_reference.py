"""The oracle equals attention written out head by head."""

from __future__ import annotations

import pytest
import torch

from aim_adapters.ops.spatial_attention.reference import spatial_attention
from tests.ops.spatial_attention.cases import LAYOUTS, Sizes, added, projection


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", [Sizes(), Sizes(frames=6, tokens=3, bias=True, windows=3), Sizes(tokens=1)])
def test_equals_the_naive_loop(sizes: Sizes, layout: str) -> None:
    qkv = projection(sizes, layout)
    bias, mask = added(sizes)
    out = spatial_attention(qkv, scale=0.3, bias=bias, mask=mask)
    assert out.shape == (sizes.frames, sizes.tokens, sizes.heads, sizes.dim)
    for frame in range(sizes.frames):
        for head in range(sizes.heads):
            q, k, v = qkv[frame, :, :, head].unbind(1)
            scores = 0.3 * q @ k.T
            if bias is not None:
                scores = scores + bias[head]
            if mask is not None:
                scores = scores + mask[frame % mask.shape[0]]
            weights = scores.exp() / scores.exp().sum(1, keepdim=True)
            torch.testing.assert_close(out[frame, :, head], weights @ v, rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_finite_differences() -> None:
    sizes = Sizes(tokens=3, dim=2, bias=True, windows=2)
    bias, mask = (x.double() for x in added(sizes) if x is not None)
    qkv = projection(sizes).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: spatial_attention(x, scale=0.7, bias=bias, mask=mask), qkv)
