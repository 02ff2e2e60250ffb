"""A layer that a linear adapter is folded into computes what the two did, one behind the other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from aim_adapters.layers import Adapter, folded_bias, folded_weight


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.booleans(), st.sampled_from([None, 1.0, 1e-5, 0.0]))
@settings(deadline=None, max_examples=60)
def test_folded_layer_is_the_layer_and_the_adapter(
    features: int, dim: int, width: int, biased: bool, scale: float | None
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(features, dim, bias=biased, dtype=torch.float64)
    adapter = Adapter(dim, width, skip=True, linear=True, dtype=torch.float64)
    nn.init.normal_(adapter.up_proj.weight)
    nn.init.normal_(adapter.up_proj.bias)
    gamma = None if scale is None else scale * torch.randn(dim, dtype=torch.float64)  # also zero, as it may be trained
    x = torch.randn(5, features, dtype=torch.float64)
    down, up = adapter.down_proj, adapter.up_proj
    weight = folded_weight(layer.weight, down.weight, up.weight, gamma)
    bias = folded_bias(down.weight, down.bias, up.weight, up.bias, layer.bias, gamma)
    expected = adapter(layer(x) if gamma is None else gamma * layer(x))
    torch.testing.assert_close(x @ weight.T + bias, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, down, up = (torch.randn(*shape).to(dtype) for shape in ((8, 8), (4, 8), (8, 4)))
    gamma, bias, down_bias, up_bias = (torch.randn(size).to(dtype) for size in (8, 8, 4, 8))
    exact = folded_weight(weight.double(), down.double(), up.double(), gamma.double())
    torch.testing.assert_close(folded_weight(weight, down, up, gamma), exact.to(dtype), rtol=1e-6, atol=1e-6)
    own = (down, down_bias, up, up_bias, bias, gamma)
    torch.testing.assert_close(
        folded_bias(*own), folded_bias(*(t.double() for t in own)).to(dtype), rtol=1e-6, atol=1e-6
    )
