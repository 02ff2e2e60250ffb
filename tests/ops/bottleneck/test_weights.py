"""Frozen layers and the adapters around them, put together, equal what each does by itself."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from aim_adapters.ops.bottleneck import Adapter, Layer, aligned, padded
from tests.ops.bottleneck.test_bottleneck import CUDA, DEVICE, IMPLEMENTATIONS, WEIGHTS, drawn, kernels, poisoned  # noqa: F401

LONG = 1030 if CUDA else 70  # more than a block, and no multiple of one
# Whether matrices are transposed views, and whether there are a bias and a LayerScale.
KINDS = pytest.mark.parametrize(
    ("turned", "has_bias", "scaled"),
    [(False, True, True), (True, False, True), (False, True, False)],
    ids=["whole", "turned", "no LayerScale"],
)


@pytest.fixture(autouse=True)
def _rows_of_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let short rows span several blocks where kernels are interpreted: long ones take a thousand times as long."""
    if not CUDA:
        monkeypatch.setattr(kernels, "_COLUMNS", 32)


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
        (5, LONG, (16,), (True,)),
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
@pytest.mark.parametrize(("dim", "hidden", "width"), [(40, 96, 24), (LONG, 5, 15)])
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


@IMPLEMENTATIONS
@WEIGHTS
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("turned", [False, True], ids=["rows", "turned"])
@pytest.mark.parametrize(
    ("dim", "own", "width"), [(1, 8, 1), (40, 96, 24), (5, 1008, 15), (3, 1500, 192), (2, 7, 1100)]
)
def test_widened(
    ops: ModuleType, given: torch.dtype, dtype: torch.dtype, turned: bool, dim: int, own: int, width: int
) -> None:
    weight, up_weight, up_bias = drawn((dim, own), (dim, width), (dim,), dtype=given, turned=turned)
    zeros = torch.zeros(dim, padded(width) - width - 1, dtype=dtype, device=DEVICE)
    adapter = torch.cat((up_weight.to(dtype), up_bias.to(dtype)[:, None], zeros), 1)
    for each, true in ((weight, torch.cat((weight.to(dtype), adapter), 1)), (None, adapter)):
        got = ops.widened(each, up_weight, up_bias, dtype)
        assert got.dtype == dtype and got.is_contiguous() and torch.equal(got, true)


@IMPLEMENTATIONS
@WEIGHTS
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("turned", [False, True], ids=["rows", "turned"])
@pytest.mark.parametrize("biased", [True, False], ids=["biased", "without bias"])
@pytest.mark.parametrize(("dim", "own", "width"), [(1, 8, 1), (24, 96, 24), (1000, 5, 15), (1024, 3, 8)])
def test_joined(
    ops: ModuleType, given: torch.dtype, dtype: torch.dtype, turned: bool, biased: bool, dim: int, own: int, width: int
) -> None:
    shapes = (own, dim), (width, dim), (own,), (width,)
    weight, down_weight, bias, down_bias = drawn(*shapes, dtype=given, turned=turned)
    layer, down = Layer(weight, bias if biased else None), Layer(down_weight, down_bias)
    weights, biases = ops.joined([layer], down, dtype)
    assert weights.dtype == biases.dtype == dtype and weights.is_contiguous()
    assert torch.equal(weights, torch.cat((weight, down_weight)).to(dtype))
    assert torch.equal(biases, torch.cat((bias if biased else torch.zeros_like(bias), down_bias)).to(dtype))


@IMPLEMENTATIONS
@WEIGHTS
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("with_down", [True, False], ids=["with down", "alone"])
@pytest.mark.parametrize("biased", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize(("dim", "own", "width"), [(24, 16, 24), (10, 5, 15)])
def test_two_layers_joined(
    ops: ModuleType,
    given: torch.dtype,
    dtype: torch.dtype,
    biased: tuple[bool, bool],
    with_down: bool,
    dim: int,
    own: int,
    width: int,
) -> None:
    """Each takes a multiple of eight rows; layers packed in one tensor are given as views."""
    packed, packed_bias, down_weight, down_bias = drawn(
        (2 * own, dim), (2 * own,), (width, dim), (width,), dtype=given, turned=False
    )
    parts = zip(packed.split(own), packed_bias.split(own), biased, strict=True)
    layers = [Layer(weight, bias if there else None) for weight, bias, there in parts]
    weights, biases = ops.joined(layers, Layer(down_weight, down_bias) if with_down else None, dtype)
    space = aligned(own)
    assert weights.shape == (2 * space + width * with_down, dim) and weights.dtype == biases.dtype == dtype
    for index, (weight, bias) in enumerate(layers):
        rows, rows_bias = weights[index * space :][:space], biases[index * space :][:space]
        assert torch.equal(rows[:own], weight.to(dtype)) and not rows[own:].any() and not rows_bias[own:].any()
        assert torch.equal(rows_bias[:own], torch.zeros_like(rows_bias[:own]) if bias is None else bias.to(dtype))
    if with_down:
        assert torch.equal(weights[2 * space :], down_weight.to(dtype))
        assert torch.equal(biases[2 * space :], down_bias.to(dtype))


@IMPLEMENTATIONS
@pytest.mark.usefixtures("poisoned")
def test_widened_behind_columns_of_zeros(ops: ModuleType) -> None:
    weight, up_weight, up_bias = drawn((5, 11), (5, 3), (5,), dtype=torch.float32, turned=False)
    got = ops.widened(weight, up_weight, up_bias, torch.float32, 16)
    assert torch.equal(got[:, 16:], ops.widened(None, up_weight, up_bias, torch.float32))
    assert torch.equal(got[:, :11], weight) and not got[:, 11:16].any()
