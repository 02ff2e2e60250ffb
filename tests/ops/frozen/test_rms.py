"""RMS norms answer to float64 autograd of the plain formula, and are what libraries call by that name."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from timm.layers import RmsNorm
from torch import nn

from tests.ops.frozen.test_frozen import (
    DEVICE,
    DTYPES,
    IMPLEMENTATIONS,
    aten,
    by_autograd,
    double,
    near,
    normal,
    poisoned,
)
from tests.ops.frozen.test_gated import rms

__all__ = ["poisoned"]


@IMPLEMENTATIONS
@DTYPES
@pytest.mark.parametrize("shape", [(5, 96), (3, 1000), (1, 2500)], ids=str)
@pytest.mark.parametrize("parameters", [(True, True), (False, False)], ids=["affine", "plain"])
def test_forward(
    ops: ModuleType, stream: torch.dtype, low: torch.dtype, shape: tuple[int, int], parameters: tuple[bool, bool]
) -> None:
    x, other = 3 * normal(*shape, dtype=stream) + 5, normal(*shape, dtype=low, seed=1)
    weight, bias = (
        normal(shape[1], seed=seed) if there else None for seed, there in zip((2, 3), parameters, strict=True)
    )
    total, h = ops.add_layer_norm(x, other, weight, bias, 1e-3, low, "rms")
    near(total, (x.float() + other.float()).to(stream), x.double() + other.double())
    for rows, got in ((total, h), (x, ops.layer_norm(x, weight, bias, 1e-3, low, "rms"))):
        true = rms(rows.double(), double(weight), double(bias), 1e-3)
        near(got, rms(rows.float(), weight, bias, 1e-3).to(low), true)


@IMPLEMENTATIONS
@DTYPES
@pytest.mark.parametrize("shape", [(5, 96), (3, 1000), (1, 2500)], ids=str)
@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
def test_backward(
    ops: ModuleType, stream: torch.dtype, low: torch.dtype, shape: tuple[int, int], weighted: bool
) -> None:
    x, d_h = 3 * normal(*shape, dtype=stream) + 5, normal(*shape, dtype=low, seed=1)
    weight, d_residual = normal(shape[1], seed=2) if weighted else None, normal(*shape, dtype=stream, seed=3)
    for residual in (None, d_residual):
        true = by_autograd(lambda x: rms(x, double(weight), None, 1e-3), x.double(), d_h.double())
        plain = by_autograd(lambda x: rms(x, weight, None, 1e-3), x.float(), d_h.float())
        if residual is not None:
            true, plain = true + residual.double(), plain + residual.float()
        near(ops.layer_norm_backward(d_h, x, weight, 1e-3, residual, "rms"), plain.to(stream), true)


@IMPLEMENTATIONS
@pytest.mark.usefixtures("poisoned")
def test_every_element_is_written_and_inputs_stay(ops: ModuleType) -> None:
    x, d_h = normal(9, 100), normal(9, 100, seed=1)
    kept = x.clone(), d_h.clone()
    assert ops.layer_norm(x, None, None, 1e-5, torch.float16, "rms").isfinite().all()
    assert ops.layer_norm_backward(d_h, x, None, 1e-5, None, "rms").isfinite().all()
    assert torch.equal(x, kept[0]) and torch.equal(d_h, kept[1])


@IMPLEMENTATIONS
def test_is_what_libraries_compute(ops: ModuleType) -> None:
    x = normal(5, 24)
    for layer in (nn.RMSNorm(24, eps=1e-2), RmsNorm(24, eps=1e-2)):
        weight = nn.init.normal_(layer.to(DEVICE).weight)
        expected = layer(x).detach()
        torch.testing.assert_close(ops.layer_norm(x, weight.detach(), None, 1e-2, torch.float32, "rms"), expected)


def test_aten_in_float64() -> None:
    x, d_h, weight = (normal(*shape, dtype=torch.float64, seed=i) for i, shape in enumerate([(5, 24), (5, 24), (24,)]))
    torch.testing.assert_close(
        aten.layer_norm(x, weight, weight, 1e-5, torch.float64, "rms"),
        rms(x, weight, weight, 1e-5),
        rtol=1e-13,
        atol=1e-13,
    )
    true = by_autograd(lambda x: rms(x, weight, None, 1e-5), x, d_h)
    torch.testing.assert_close(aten.layer_norm_backward(d_h, x, weight, 1e-5, x, "rms"), true + x)
