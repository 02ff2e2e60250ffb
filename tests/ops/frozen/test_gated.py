"""Gated activations and norms behind activations answer to float64 autograd of the plain formulas."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from aim_adapters.ops.frozen import InnerNorm, aten
from tests.ops.frozen.test_frozen import CUDA, DEVICE, IMPLEMENTATIONS, KINDS, double, kernels, near, norm, normal

LOW = pytest.mark.parametrize("low", [torch.float32, torch.bfloat16, torch.float16], ids=str)
SHAPES = pytest.mark.parametrize("shape", [(1, 24), (40, 96), (7, 333)], ids=str)
NORMS = ("", "layer", "rms")


def rms(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    out = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def formula(inner: InnerNorm | None, kind: str, pre: Tensor, value: Tensor | None) -> Tensor:
    """Return ``norm(f(pre) * value)``, each operator in the dtype of ``pre``."""
    out = KINDS[kind](pre) if value is None else KINDS[kind](pre) * value
    if inner is None:
        return out
    weight, bias = (p if p is None else p.to(out.dtype) for p in inner[:2])
    return (norm if inner.norm == "layer" else rms)(out, weight, bias, inner.eps)


def gradients(inner: InnerNorm | None, kind: str, given: list[Tensor], d_out: Tensor) -> list[Tensor]:
    leaves = [each.detach().clone().requires_grad_() for each in given]
    out = formula(inner, kind, leaves[0], leaves[1] if len(leaves) == 2 else None)
    return list(torch.autograd.grad(out, leaves, d_out))


def memory_of(*columns: Tensor, behind: int = 3) -> tuple[Tensor, list[Tensor]]:
    """Return tensors side by side in one memory, with other columns behind them, and views of each."""
    wide = torch.cat((*columns, columns[0].new_full((len(columns[0]), behind), 7.0)), 1)
    return wide, list(wide.split([each.shape[1] for each in columns] + [behind], 1)[:-1])


def inner_norm(kind: str, units: int, dtype: torch.dtype = torch.float32, *, affine: bool = True) -> InnerNorm | None:
    weight, bias = (normal(units, dtype=dtype, seed=seed) if affine else None for seed in (5, 6))
    return InnerNorm(weight, bias, 1e-3, kind, units) if kind else None


def run(ops: ModuleType, inner: InnerNorm | None, kind: str, *given: Tensor, out: Tensor) -> Tensor:
    pre, value = given if len(given) == 2 else (given[0], None)
    if inner is None:
        return ops.activation(pre, kind, out, value)
    return ops.activation_norm(pre, kind, inner, out, value)


def run_backward(ops: ModuleType, inner: InnerNorm | None, kind: str, d: Tensor, *given: Any, d_pre: Any) -> Tensor:
    pre, value = given if len(given) == 2 else (given[0], None)
    if inner is None:
        return ops.activation_backward(d, pre, kind, value, d_pre)
    return ops.activation_norm_backward(d, pre, kind, inner, value, d_pre)


def check(
    ops: ModuleType, shape: tuple[int, int], low: torch.dtype, kind: str, inner: InnerNorm | None, gated: bool
) -> None:
    """Hold output and gradients to float64; and see that nothing beside them is written, nor what is given."""
    given = [3 * normal(*shape, dtype=low, seed=seed) for seed in range(1 + gated)]
    d_out = normal(*shape, dtype=low, seed=3)
    exact = inner and inner._replace(weight=double(inner.weight), bias=double(inner.bias))
    memory, views = memory_of(*given)
    wide, (out,) = memory_of(torch.full_like(d_out, float("nan")))
    assert run(ops, inner, kind, *views, out=out) is out
    true = formula(exact, kind, *[x.double() for x in given], *[None] * (not gated))
    # Before a norm nothing is rounded, so the plain formula is not either.
    plain = [x.float() for x in given] if inner else given
    near(out, formula(inner, kind, *plain, *[None] * (not gated)).to(low), true)
    d_wide, (*d_pre, d) = memory_of(*[torch.full_like(d_out, float("nan"))] * gated, d_out)
    assert run_backward(ops, inner, kind, d, *views, d_pre=d_pre[0] if gated else None) is d
    exact_gradients = gradients(exact, kind, [x.double() for x in given], d_out.double())
    plain_gradients = gradients(inner, kind, plain, d_out.to(plain[0].dtype))
    for ours, theirs, true in zip((*d_pre, d), plain_gradients, exact_gradients, strict=True):
        near(ours, theirs.to(low), true)
    assert all(torch.equal(view, x) for view, x in zip(views, given, strict=True))
    assert all((each[:, -3:] == 7.0).all() for each in (memory, wide, d_wide))


@IMPLEMENTATIONS
@pytest.mark.parametrize("kind", KINDS)
@LOW
@SHAPES
def test_gated_activations(ops: ModuleType, kind: str, low: torch.dtype, shape: tuple[int, int]) -> None:
    check(ops, shape, low, kind, None, True)


@IMPLEMENTATIONS
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "alone"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("inner", NORMS[1:])
@LOW
@SHAPES
def test_normalized_activations(
    ops: ModuleType, inner: str, affine: bool, gated: bool, low: torch.dtype, shape: tuple[int, int]
) -> None:
    check(ops, shape, low, "silu", inner_norm(inner, shape[1], affine=affine), gated)


@IMPLEMENTATIONS
@pytest.mark.parametrize("kind", KINDS)
def test_every_activation_can_be_normalized(ops: ModuleType, kind: str) -> None:
    for gated in (True, False):
        check(ops, (7, 96), torch.float32, kind, inner_norm("layer", 96, torch.float16), gated)


@IMPLEMENTATIONS
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "alone"])
@pytest.mark.parametrize("inner", NORMS[1:])
def test_columns_behind_the_units_count_in_no_norm_and_are_zeros(ops: ModuleType, inner: str, gated: bool) -> None:
    given = [normal(5, 16, seed=seed) for seed in range(1 + gated)]
    for each in given:
        each[:, 11:] = 0  # as products with rows of zeros leave them
    found = inner_norm(inner, 11)
    d, d_pre, out = normal(5, 16, seed=3), torch.full_like(given[0], float("nan")), torch.full_like(given[0], 7.0)
    expected = run(ops, found, "gelu", *[x[:, :11] for x in given], out=torch.empty(5, 11, device=DEVICE))
    run(ops, found, "gelu", *given, out=out)
    torch.testing.assert_close(out[:, :11], expected)
    exact = gradients(found, "gelu", [x[:, :11] for x in given], d[:, :11])
    run_backward(ops, found, "gelu", d, *given, d_pre=d_pre if gated else None)
    for ours, theirs in zip([d_pre, d][not gated :], exact, strict=True):
        torch.testing.assert_close(ours[:, :11], theirs, rtol=1e-5, atol=1e-5)
        assert not ours[:, 11:].any()
    assert not out[:, 11:].any()


@IMPLEMENTATIONS
def test_not_a_number_stays_visible(ops: ModuleType) -> None:
    one, nan = torch.ones(1, 4, device=DEVICE), torch.tensor([[1.0, float("nan"), 1.0, 1.0]], device=DEVICE)
    for given in ((one, nan), (nan, one)):
        assert ops.activation(given[0], "silu", None, given[1]).isnan().tolist() == nan.isnan().tolist()
        out = ops.activation_norm(given[0], "silu", inner_norm("rms", 4), torch.empty_like(one), given[1])
        assert out.isnan().all()


def test_rows_farther_apart_than_32_bits_can_count() -> None:
    far = 2**30
    # On a CPU, only what is touched takes memory.
    memory = torch.empty(2 * far + 24, device=DEVICE, dtype=torch.float16)
    pre, value = (memory[start:].as_strided((3, 8), (far, 1), start) for start in (0, 8))
    given = [normal(3, 8, dtype=torch.float16, seed=seed) for seed in range(2)]
    for there, each in zip((pre, value), given, strict=True):
        there.copy_(each)
    for inner in (None, inner_norm("layer", 8)):
        out, near_out = (torch.empty_like(given[0]) for _ in range(2))
        run(kernels, inner, "silu", pre, value, out=out)
        assert torch.equal(out, run(kernels, inner, "silu", *given, out=near_out))


def test_aten_in_float64() -> None:
    given = [normal(5, 24, dtype=torch.float64, seed=seed) for seed in range(2)]
    for kind, norm_kind in zip(KINDS, (*NORMS, *NORMS), strict=False):
        inner, d = inner_norm(norm_kind, 24, torch.float64), normal(5, 24, dtype=torch.float64, seed=3)
        out, d_pre = torch.empty_like(d), torch.empty_like(d)
        torch.testing.assert_close(run(aten, inner, kind, *given, out=out), formula(inner, kind, *given))
        expected = gradients(inner, kind, given, d)
        run_backward(aten, inner, kind, d, *given, d_pre=d_pre)
        torch.testing.assert_close([d_pre, d], expected)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "alone"])
@pytest.mark.parametrize("inner", NORMS)
@pytest.mark.parametrize("width", [2048, 2736, 4096, 8192])
def test_sizes_in_use(width: int, inner: str, gated: bool) -> None:
    for low in (torch.bfloat16, torch.float32):
        check(kernels, (1577, width), low, "silu", inner_norm(inner, width), gated)
