"""Both implementations of an adapter's parts answer to float64 autograd of the plain formula."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aim_adapters.errors import UnsupportedKernelError
from aim_adapters.ops.bottleneck import aten

kernels = pytest.importorskip("aim_adapters.ops.bottleneck.triton")

# Of the interpreter of Triton 3.6, in a loop over a number that is not a constant.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
IMPLEMENTATIONS = pytest.mark.parametrize("ops", [aten, kernels], ids=["aten", "triton"])
# Of the residual stream, and of the adapter. The interpreter multiplies bfloat16 wrongly.
PAIRS = [(torch.float32, torch.float32), (torch.float32, torch.float16), (torch.float16, torch.float16)]
PAIRS += [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)] * CUDA
DTYPES = pytest.mark.parametrize(("stream", "low"), PAIRS, ids=str)


@dataclass(frozen=True)
class Case:
    """Sizes of a call: clips of some rows, D and W."""

    clips: int
    rows: int
    dim: int
    width: int


CASES = pytest.mark.parametrize(
    "case",
    [Case(1, 1, 24, 8), Case(3, 5, 96, 24), Case(1, 131, 200, 192), Case(7, 1, 1000, 72), Case(2, 3, 40, 264)],
    ids=str,
)


@dataclass(frozen=True)
class Inputs:
    """Tensors of a call, and the gradient of its result."""

    pre: Tensor
    up_weight: Tensor
    up_bias: Tensor
    residual: Tensor
    other: Tensor | None
    factor: Tensor | None
    d_out: Tensor

    @classmethod
    def of(cls, case: Case, stream: torch.dtype, low: torch.dtype, *, other: bool, factor: bool) -> Inputs:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, dtype: torch.dtype = low) -> Tensor:
            return torch.randn(shape, generator=generator).to(DEVICE, dtype)

        tokens = case.clips * case.rows
        return cls(
            2 * normal(tokens, case.width),
            normal(case.dim, case.width) / case.width**0.5,
            normal(case.dim),
            normal(tokens, case.dim, dtype=stream),
            normal(tokens, case.dim) if other else None,
            torch.rand(case.clips, generator=generator).to(DEVICE) * 1.3 if factor else None,
            normal(tokens, case.dim, dtype=stream),
        )

    def to(self, dtype: torch.dtype) -> Inputs:
        return Inputs(*(None if x is None else x.to(dtype) for x in vars(self).values()))  # type: ignore[arg-type]


def plain(inputs: Inputs, rows: int, scale: float) -> list[Tensor]:
    """Return the result and the gradients of pre, up_weight and up_bias by autograd, each operator in its dtype."""
    leaves = [x.detach().clone().requires_grad_() for x in (inputs.pre, inputs.up_weight, inputs.up_bias)]
    branch = F.linear(F.gelu(leaves[0]), *leaves[1:])
    if inputs.factor is not None:
        branch = branch * inputs.factor.repeat_interleave(rows)[:, None]
    out = inputs.residual + scale * branch
    out = out if inputs.other is None else out + inputs.other
    gradients = torch.autograd.grad(out, leaves, inputs.d_out.to(out.dtype))
    return [out.detach().to(inputs.residual.dtype), *gradients]


def near(got: Tensor, plain: Tensor, true: Tensor) -> None:
    """Hold a result to twice the error of PyTorch's operators in the same dtype."""
    assert got.shape == true.shape
    allowed = 2 * (plain.double() - true).norm() + 4 * torch.finfo(plain.dtype).eps * true.norm()
    assert (got.double() - true).norm() <= allowed


def check(ops: ModuleType, inputs: Inputs, rows: int, scale: float) -> None:
    x = inputs
    eager, true = plain(x, rows, scale), plain(x.to(torch.float64), rows, scale)
    out = ops.up_add(x.pre, x.up_weight, x.up_bias, x.residual, x.other, x.factor, rows, scale)
    assert out.dtype == x.residual.dtype
    near(out, eager[0], true[0])
    d_pre, hidden, d_up_bias, d_down_bias = ops.down_backward(x.d_out, x.up_weight, x.pre, x.factor, rows, scale)
    assert d_pre.dtype == hidden.dtype == x.pre.dtype
    assert d_up_bias.dtype == d_down_bias.dtype == torch.promote_types(x.pre.dtype, torch.float32)
    near(d_pre, eager[1], true[1])
    near(x.d_out.double().T @ hidden.double(), eager[2], true[2])
    near(d_up_bias, eager[3], true[3])
    near(d_down_bias, eager[1].sum(0), true[1].sum(0))


@IMPLEMENTATIONS
@DTYPES
@CASES
@pytest.mark.parametrize("other", [True, False], ids=["other", "alone"])
@pytest.mark.parametrize("factor", [True, False], ids=["factor", "every"])
def test_against_autograd(
    ops: ModuleType, stream: torch.dtype, low: torch.dtype, case: Case, other: bool, factor: bool
) -> None:
    check(ops, Inputs.of(case, stream, low, other=other, factor=factor), case.rows, 0.7)


@CASES
@pytest.mark.parametrize("factor", [True, False], ids=["factor", "every"])
def test_aten_in_float64(case: Case, factor: bool) -> None:
    x = Inputs.of(case, torch.float64, torch.float64, other=True, factor=factor)
    out = aten.up_add(x.pre, x.up_weight, x.up_bias, x.residual, x.other, x.factor, case.rows, 0.7)
    d_pre, hidden, *biases = aten.down_backward(x.d_out, x.up_weight, x.pre, x.factor, case.rows, 0.7)
    true = plain(x, case.rows, 0.7)
    got = [out, d_pre, x.d_out.T @ hidden, *biases]
    torch.testing.assert_close(got, [*true, true[1].sum(0)], rtol=1e-12, atol=1e-12)


@IMPLEMENTATIONS
def test_a_dropped_clip_passes_and_gets_nothing(ops: ModuleType) -> None:
    x = Inputs.of(Case(3, 4, 24, 8), torch.float32, torch.float32, other=False, factor=True)
    factor = torch.tensor([0.0, 2.0, 0.0], device=DEVICE)
    out = ops.up_add(x.pre, x.up_weight, x.up_bias, x.residual, None, factor, 4, 0.5)
    d_pre, hidden, d_up_bias, _ = ops.down_backward(x.d_out, x.up_weight, x.pre, factor, 4, 0.5)
    kept = torch.tensor([0] * 4 + [1] * 4 + [0] * 4, device=DEVICE).bool()
    assert torch.equal(out[~kept], x.residual[~kept])
    assert not d_pre[~kept].any() and not hidden[~kept].any()
    assert d_pre[kept].all() and hidden[kept].all()
    torch.testing.assert_close(d_up_bias, x.d_out[kept].sum(0))


def test_the_same_again_to_the_bit() -> None:
    x = Inputs.of(Case(3, 90, 96, 264), torch.float32, torch.float16, other=True, factor=True)
    first, second = (kernels.down_backward(x.d_out, x.up_weight, x.pre, x.factor, 90, 0.5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@CASES
def test_every_element_is_written(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    """Memory handed out is full of NaN, so that an element left out shows."""
    empty = torch.empty
    monkeypatch.setattr(kernels.torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    x = Inputs.of(case, torch.float32, torch.float32, other=True, factor=True)
    out = kernels.up_add(x.pre, x.up_weight, x.up_bias, x.residual, x.other, x.factor, case.rows, 0.5)
    rest = kernels.down_backward(x.d_out, x.up_weight, x.pre, x.factor, case.rows, 0.5)
    assert all(each.isfinite().all() for each in (out, *rest))


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = torch.zeros(1, 1032, device=DEVICE)
    weight, row = torch.zeros(8, 1032, device=DEVICE), torch.zeros(1, 8, device=DEVICE)
    with pytest.raises(UnsupportedKernelError, match="1032 wide does not fit"):
        kernels.up_add(wide, weight, row[0], row, None, None, 1, 1.0)
    monkeypatch.setattr(kernels, "shared_memory", lambda device: 2**10)
    arguments: list[Any] = [row, weight[:, :8].contiguous(), row, None, 1, 1.0]
    with pytest.raises(UnsupportedKernelError, match="1 KiB of shared memory"):
        kernels.down_backward(*arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("stream", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("dim", "width"),
    [(96, 24), (768, 48), (768, 192), (1024, 256), (1280, 320), (1536, 384), (2048, 512), (2048, 1024)],
)
def test_sizes_in_use(dim: int, width: int, stream: torch.dtype) -> None:
    check(kernels, Inputs.of(Case(2, 1576, dim, width), stream, torch.bfloat16, other=True, factor=True), 1576, 0.5)
