"""Frozen layers and the adapters around them, put together, equal what each does by itself."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from aim_adapters.ops.bottleneck import Adapter, Layer, padded
from tests.ops.bottleneck.test_bottleneck import IMPLEMENTATIONS, WEIGHTS, drawn, poisoned  # noqa: F401

# Whether matrices are transposed views, and whether there are a bias and a LayerScale.
KINDS = pytest.mark.parametrize(
    ("turned", "has_bias", "scaled"),
    [(False, True, True), (True, False, True), (False, True, False)],
    ids=["whole", "turned", "no LayerScale"],
)


def adapter(dim: int, width: int, *, beside: bool, held: torch.dtype, turned: bool) -> Adapter:
    shapes = (width, dim), (width,), (dim, width), (dim,)
    return Adapter(*drawn(*shapes, dtype=held, turned=turned), beside)


def assert_near(got: Tensor, expected: Tensor, dtype: torch.dtype, terms: int = 1, eps: float = 0.0) -> None:
    eps = max(eps, torch.finfo(dtype).eps) * max(4, terms)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=eps, atol=eps)


def assert_wide(got: Tensor, layer: Tensor, given: Adapter, dtype: torch.dtype, eps: float) -> None:
    """Hold ``[D, K + P]`` to the layer's weights, the adapter's, its bias and zeros."""
    width, own = given.up_weight.shape[1], layer.shape[1]
    assert got.shape == (len(layer), own + padded(width))
    assert_near(got[:, :own], layer, dtype, eps=eps)
    assert torch.equal(got[:, own : own + width], given.up_weight.to(dtype))
    assert torch.equal(got[:, own + width], given.up_bias.to(dtype))
    assert not got[:, own + width + 1 :].any()


@IMPLEMENTATIONS
@WEIGHTS
@KINDS
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("dim", "inner", "widths", "beside"),
    [
        (40, 96, (24, 15), (False, True)),
        (5, 1030, (16,), (True,)),
        (8, 16, (2, 4), (False, False)),
    ],
)
def test_output_layer(
    ops: ModuleType, given: torch.dtype, dtype: torch.dtype, turned: bool, has_bias: bool, scaled: bool,
    dim: int, inner: int, widths: tuple[int, ...], beside: tuple[bool, ...],
) -> None:  # fmt: skip
    weight, bias, gamma = drawn((dim, inner), (dim,), (dim,), dtype=given, turned=turned)
    adapters = [adapter(dim, w, beside=b, held=given, turned=turned) for w, b in zip(widths, beside, strict=True)]
    got = ops.output_layer(weight, bias if has_bias else None, gamma if scaled else None, adapters, dtype)
    eps = torch.finfo(given).eps  # a LayerScale may be applied in the dtype that weights are held in
    factor = gamma.double() if scaled else torch.ones_like(gamma).double()
    exact, exact_bias = weight.double() * factor[:, None], bias.double() * factor
    assert_near(got.weight, exact, dtype, eps=eps)
    assert (got.bias is None) != has_bias
    if has_bias:
        assert_near(got.bias, exact_bias, dtype, eps=eps)
    for each, found in zip(adapters, got.adapters, strict=True):
        assert_wide(found.widened, exact if each.beside else exact[:, :0], each, dtype, eps)
        down = each.down_weight.double()
        assert_near(found.weight, down @ exact, dtype, 8 * dim, eps)
        expected = each.down_bias.double() + (down @ exact_bias if has_bias else 0)
        assert_near(found.bias, expected, dtype, 8 * dim, eps)


@IMPLEMENTATIONS
@WEIGHTS
@KINDS
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("dim", "hidden", "width"), [(40, 96, 24), (1030, 5, 15)])
def test_mlp_layers(
    ops: ModuleType, given: torch.dtype, dtype: torch.dtype, turned: bool, has_bias: bool, scaled: bool,
    dim: int, hidden: int, width: int,
) -> None:  # fmt: skip
    shapes = (hidden, dim), (hidden,), (dim, hidden), (dim,), (dim,)
    in_weight, in_bias, out_weight, out_bias, gamma = drawn(*shapes, dtype=given, turned=turned)
    each = adapter(dim, width, beside=True, held=given, turned=turned)
    first, last = Layer(in_weight, in_bias if has_bias else None), Layer(out_weight, out_bias if has_bias else None)
    got = ops.mlp_layers(first, last, gamma if scaled else None, each, dtype)
    assert torch.equal(got.first_weight, torch.cat([in_weight, each.down_weight]).to(dtype))
    zeros = in_bias if has_bias else torch.zeros_like(in_bias)
    assert torch.equal(got.first_bias, torch.cat([zeros, each.down_bias]).to(dtype))
    eps = torch.finfo(given).eps  # a LayerScale may be applied in the dtype that weights are held in
    factor = gamma.double() if scaled else torch.ones_like(gamma).double()
    assert_wide(got.last_weight, out_weight.double() * factor[:, None], each, dtype, eps)
    assert (got.last_bias is None) != has_bias
    if has_bias:
        assert_near(got.last_bias, out_bias.double() * factor, dtype, eps=eps)
