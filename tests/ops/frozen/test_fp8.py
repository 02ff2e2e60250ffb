"""Rows in float8 stand for what they were made of to 1/16, and products of them for the products."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from aim_adapters.ops.frozen import Scaled, aten, aten_fp8, product, scaled_rows
from aim_adapters.ops.frozen.scaled import LARGEST
from tests.ops.frozen.test_frozen import KINDS, norm

kernels = pytest.importorskip("aim_adapters.ops.frozen.triton_fp8")

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
IMPLEMENTATIONS = pytest.mark.parametrize("ops", [aten_fp8, kernels], ids=["aten", "triton"])
SHAPES = pytest.mark.parametrize("shape", [(1, 16), (5, 96), (7, 768), (3, 1008), (2, 1024), (1, 2512)], ids=str)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
# Half of the last of three bits of mantissa; and half of the smallest number, of a row whose largest is 448.
RELATIVE, ABSOLUTE = 1 / 16, 2**-10 / 448


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def rows(scaled: Scaled) -> Tensor:
    """Return what a matrix stands for, float64."""
    return scaled.values.double() * scaled.scale.double()


@pytest.fixture(autouse=not CUDA)
def unrounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kernels write float32: Triton's interpreter rounds to float8 wrongly, it drops the carry of the mantissa."""
    monkeypatch.setattr(kernels, "DTYPE", torch.float32)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand out memory full of NaN, so that an element left out shows."""
    make = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *a, **k: make(*a, **k).copy_(make((), device=DEVICE).fill_(float("nan")))
    )


def check(scaled: Scaled, true: Tensor, slack: float = 0.0) -> None:
    """Hold every element to what rounding to float8 does, and to ``slack`` of the row's largest."""
    assert scaled.values.shape == true.shape and scaled.scale.shape == (len(true), 1)
    assert scaled.values.is_contiguous() and scaled.scale.dtype == torch.float32
    assert scaled.values.dtype in (torch.float8_e4m3fn, torch.float32)
    largest = true.abs().amax(-1, keepdim=True)
    allowed = RELATIVE * true.abs() + (ABSOLUTE + slack) * largest
    assert ((rows(scaled) - true).abs() <= allowed * (1 + 1e-5)).all()
    torch.testing.assert_close(scaled.scale.double() * LARGEST, largest, rtol=1e-5 + slack, atol=1e-20)


@IMPLEMENTATIONS
@SHAPES
@DTYPES
def test_rows(ops: ModuleType, shape: tuple[int, int], dtype: torch.dtype, poisoned: None) -> None:
    x = normal(*shape, dtype=dtype)
    check(ops.quantize(x), x.double())
    check(ops.quantize(normal(*shape[::-1], dtype=dtype).T), normal(*shape[::-1], dtype=dtype).T.double())


@IMPLEMENTATIONS
@pytest.mark.parametrize("shape", [(16, 16), (96, 32), (48, 1040), (1536, 48), (2064, 16)], ids=str)
@DTYPES
def test_columns(ops: ModuleType, shape: tuple[int, int], dtype: torch.dtype, poisoned: None) -> None:
    weight = normal(*shape, dtype=dtype)
    check(ops.quantize_columns(weight), weight.double().T)
    check(ops.quantize_columns(weight.T), weight.double())


@IMPLEMENTATIONS
def test_rows_of_zeros_outliers_and_tiny_gradients(ops: ModuleType) -> None:
    x = normal(6, 64)
    x[0] = 0
    x[1, 3] = 1e6  # all else is lost beside it, it is not
    x[2] *= 1e-20
    x[3] *= 1e20
    found = ops.quantize(x)
    check(found, x.double())
    assert not rows(found)[0].any() and found.scale.isfinite().all()
    assert float(rows(found)[1, 3]) == pytest.approx(1e6)


@IMPLEMENTATIONS
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, in the interpreter
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(ops: ModuleType, wrong: float) -> None:
    x = normal(3, 64)
    x[1, 5] = wrong
    found = rows(ops.quantize(x))
    assert not found[1].isfinite().all() and found[[0, 2]].isfinite().all()


@IMPLEMENTATIONS
@SHAPES
@DTYPES
@pytest.mark.parametrize(("affine", "added", "kept"), [(1, 1, 1), (1, 0, 1), (0, 1, 0), (1, 0, 0)], ids=str)
def test_layer_norm(
    ops: ModuleType, shape: tuple[int, int], dtype: torch.dtype, affine: bool, added: bool, kept: bool, poisoned: None
) -> None:
    x = 3 * normal(*shape, dtype=dtype) + 5
    other = normal(*shape, dtype=dtype, seed=1) if added else None
    weight, bias = (normal(shape[1], seed=seed) if affine else None for seed in (2, 3))
    total, h, scaled = ops.layer_norm(x, other, weight, bias, 1e-3, dtype if kept else None)
    # Triton's interpreter does not round bfloat16 to even.
    plain = x if other is None else x + other
    torch.testing.assert_close(total, plain, rtol=torch.finfo(dtype).eps, atol=0)
    parameters = (None if p is None else p.double() for p in (weight, bias))
    true = norm(total.double(), *parameters, 1e-3)
    check(scaled, true, slack=1e-5)
    if kept:
        assert h.dtype == dtype
        torch.testing.assert_close(h.double(), true, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    else:
        assert h is None


@IMPLEMENTATIONS
@SHAPES
@DTYPES
@pytest.mark.parametrize("kind", KINDS)
def test_activation(ops: ModuleType, shape: tuple[int, int], dtype: torch.dtype, kind: str, poisoned: None) -> None:
    pre, d_act = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
    before = pre.clone(), d_act.clone()
    leaf = pre.double().requires_grad_()
    out = KINDS[kind](leaf)
    check(ops.activation(pre, kind), out.detach(), slack=1e-5)
    check(ops.activation_backward(d_act, pre, kind), torch.autograd.grad(out, leaf, d_act.double())[0], slack=1e-5)
    assert torch.equal(pre, before[0]) and torch.equal(d_act, before[1])


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("rows_of", [1, 50, 0])
def test_product(biased: bool, rows_of: int) -> None:
    ops, dtype = scaled_rows(normal(1).device), torch.bfloat16
    x, weight, bias = normal(rows_of, 96), normal(32, 96, seed=1), normal(32, dtype=dtype, seed=2)
    a, b = ops.quantize(x), ops.quantize(weight)
    out = product(a, b, bias if biased else None, dtype)
    true = rows(a) @ rows(b).T + (bias.double() if biased else 0)
    assert out.dtype == dtype and out.shape == (rows_of, 32)
    torch.testing.assert_close(out.double(), true, rtol=2**-7, atol=5e-2)  # summed fast


def test_product_by_columns_is_that_by_the_matrix_itself() -> None:
    d, weight = normal(50, 96), normal(96, 32, seed=1)
    ops = scaled_rows(d.device)
    out = product(ops.quantize(d), ops.quantize_columns(weight), None, torch.bfloat16)
    true = d.double() @ weight.double()
    assert (out.double() - true).norm() < 0.05 * true.norm()


def test_products_round_each_row_for_itself() -> None:
    """One scale for all would lose rows that are a millionth of others."""
    x, weight = normal(4, 96) * torch.tensor([[1.0], [1e-6], [1e6], [0.0]], device=DEVICE), normal(32, 96, seed=1)
    ops = scaled_rows(x.device)
    out = product(ops.quantize(x), ops.quantize(weight), None, torch.bfloat16).double()
    true = x.double() @ weight.double().T
    assert ((out - true).norm(dim=-1) <= 0.05 * true.norm(dim=-1)).all()


def test_wide_inputs_are_not_narrowed_before_they_are_scaled() -> None:
    x = torch.tensor([[448.0 + 2**-12, 1.0] * 8], dtype=torch.float64, device=DEVICE)
    assert float(rows(aten_fp8.quantize(x))[0, 0]) == pytest.approx(float(x[0, 0]), rel=1e-6)
    assert torch.equal(aten.activation(x, "relu"), x)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@DTYPES
def test_kernels_round_as_pytorch_does(dtype: torch.dtype) -> None:
    x = normal(256, 768, dtype=dtype)
    ours, theirs = kernels.quantize(x), aten_fp8.quantize(x)
    assert (ours.values.float() != theirs.values.float()).float().mean() < 1e-4  # ties, scaled in another order
    torch.testing.assert_close(ours.scale, theirs.scale)
