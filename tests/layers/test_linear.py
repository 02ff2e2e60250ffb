"""A linear layer of zeros is an ordinary nn.Linear otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aim_adapters.layers.linear import zero_linear


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16])
def test_is_an_ordinary_linear_layer_of_zeros(dtype: torch.dtype | None) -> None:
    layer, ordinary = zero_linear(3, 5, dtype=dtype), nn.Linear(3, 5, dtype=dtype)
    assert type(layer) is nn.Linear
    assert repr(layer) == repr(ordinary)
    assert list(layer.state_dict()) == list(ordinary.state_dict())
    for ours, theirs in zip(layer.parameters(), ordinary.parameters(), strict=True):
        assert isinstance(ours, nn.Parameter)
        assert (ours.shape, ours.dtype, ours.requires_grad) == (theirs.shape, theirs.dtype, True)
        assert not ours.any()


def test_trains_away_from_zero() -> None:
    layer = zero_linear(3, 2)
    x = torch.tensor([[1.0, 2.0, 3.0]])
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    torch.testing.assert_close(layer.weight.grad, x.expand(2, 3))
    torch.testing.assert_close(layer.bias.grad, torch.ones(2))


def test_is_made_on_the_given_device() -> None:
    layer = zero_linear(3, 5, device=torch.device("meta"))
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    with torch.device("meta"):
        here = zero_linear(3, 5, device=torch.device("cpu"))
    assert {p.device.type for p in here.parameters()} == {"cpu"}
