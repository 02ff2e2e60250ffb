"""Both implementations of an adapter's hidden layer answer to float64 autograd of the plain formula."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aim_adapters.ops.bottleneck import Layer, aten, padded

kernels = pytest.importorskip("aim_adapters.ops.bottleneck.triton")

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
IMPLEMENTATIONS = pytest.mark.parametrize("ops", [aten, kernels], ids=["aten", "triton"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
FACTORS = pytest.mark.parametrize("factor", [True, False], ids=["factor", "every"])


@dataclass(frozen=True)
class Case:
    """Sizes of a call: clips of some rows, W, and the columns to fill."""

    clips: int
    rows: int
    width: int
    columns: int

    @property
    def tokens(self) -> int:
        """M."""
        return self.clips * self.rows


CASES = pytest.mark.parametrize(
    "case",
    [
        Case(1, 1, 8, 16),
        Case(3, 5, 24, 32),
        Case(2, 700, 15, 16),
        Case(7, 1, 72, 73),
        Case(1, 131, 192, 208),
        Case(3, 50, 264, 272),
        Case(2, 3, 1, 48),
        Case(1, 3, 4200, 4208),
    ],
    ids=str,
)


@dataclass(frozen=True)
class Inputs:
    """Tensors of a call."""

    pre: Tensor
    d_hidden: Tensor
    factor: Tensor | None

    @classmethod
    def of(cls, case: Case, dtype: torch.dtype, *, factor: bool) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        shape, wide = (case.tokens, case.width), torch.promote_types(dtype, torch.float32)
        pre, d_hidden = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(2))
        f = 1.3 * torch.rand(case.clips, generator=generator) if factor else None
        return cls(2 * pre, d_hidden, None if f is None else f.to(DEVICE, wide))

    def double(self) -> Inputs:
        return Inputs(self.pre.double(), self.d_hidden.double(), None if self.factor is None else self.factor.double())


def of_rows(inputs: Inputs, case: Case, scale: float) -> Tensor:
    """Return f ``[M, 1]``, float32 at least."""
    wide = torch.promote_types(inputs.pre.dtype, torch.float32)
    clips = torch.ones(case.clips, device=DEVICE, dtype=wide) if inputs.factor is None else inputs.factor
    return scale * clips.repeat_interleave(case.rows)[:, None]


def plain(inputs: Inputs, case: Case, scale: float, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the columns, and by autograd the gradient of pre and its sum, each operator in its dtype."""
    pre, f = inputs.pre.detach().clone().requires_grad_(), of_rows(inputs, case, scale)
    value = ((F.gelu(pre) if activation == "gelu" else pre) * f).to(pre.dtype)
    (d_pre,) = torch.autograd.grad(value, pre, inputs.d_hidden)
    zeros = f.new_zeros(case.tokens, case.columns - case.width - 1)
    return torch.cat((value.detach(), f.to(pre.dtype), zeros.to(pre.dtype)), 1), d_pre, d_pre.sum(0)


def near(got: Tensor, plain: Tensor, true: Tensor) -> None:
    """Hold a result to twice the error of PyTorch's operators in the same dtype."""
    assert got.shape == true.shape
    allowed = 2 * (plain.double() - true).norm() + 4 * torch.finfo(plain.dtype).eps * true.norm()
    assert (got.double() - true).norm() <= allowed


def beside(x: Tensor, before: int = 2) -> tuple[Tensor, Tensor]:
    """Return memory with other columns on both sides of some, and these columns, which hold ``x``."""
    memory = x.new_full((len(x), before + x.shape[1] + 3), 7.0)
    columns = memory[:, before:-3]
    columns.copy_(x)
    return memory, columns


def untouched(memory: Tensor) -> bool:
    """Tell whether the columns on both sides are what they were."""
    return bool((memory[:, :2] == 7.0).all() and (memory[:, -3:] == 7.0).all())


def nothing(case: Case, dtype: torch.dtype) -> Tensor:
    """Return columns to fill, full of NaN, so that an element left out shows."""
    return torch.full((case.tokens, case.columns), float("nan"), dtype=dtype, device=DEVICE)


def check(
    ops: ModuleType, case: Case, dtype: torch.dtype, *, factor: bool, scale: float = 0.7, activation: str = "gelu"
) -> None:
    x = Inputs.of(case, dtype, factor=factor)
    eager, true = plain(x, case, scale, activation), plain(x.double(), case, scale, activation)
    (_, pre), (d_memory, d_hidden) = beside(x.pre, 9), beside(x.d_hidden)
    for again in (False, True):
        memory, out = beside(nothing(case, dtype))
        if again:
            sums = ops.hidden_backward(d_hidden, pre, out, x.factor, case.rows, scale, activation)
        else:
            assert ops.hidden(pre, out, x.factor, case.rows, scale, activation) is None
        near(out[:, : case.width + 1], *(each[:, : case.width + 1] for each in (eager[0], true[0])))
        assert not out[:, case.width + 1 :].any() and untouched(memory)
    near(d_hidden, eager[1], true[1])
    assert sums.dtype == torch.promote_types(dtype, torch.float32)
    near(sums.sum(0), eager[2], true[2])
    assert torch.equal(pre, x.pre) and untouched(d_memory)


@pytest.mark.parametrize(("width", "columns"), [(1, 16), (15, 16), (16, 32), (48, 64), (192, 208), (255, 256)])
def test_columns_of_an_adapter(width: int, columns: int) -> None:
    assert padded(width) == columns


@IMPLEMENTATIONS
@DTYPES
@CASES
@FACTORS
def test_against_autograd(ops: ModuleType, dtype: torch.dtype, case: Case, factor: bool) -> None:
    check(ops, case, dtype, factor=factor)


@IMPLEMENTATIONS
@DTYPES
@FACTORS
def test_of_a_linear_adapter_against_autograd(ops: ModuleType, dtype: torch.dtype, factor: bool) -> None:
    check(ops, Case(3, 7, 24, padded(24)), dtype, factor=factor, activation="none")


@CASES
@FACTORS
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_aten_in_float64(case: Case, factor: bool, scale: float) -> None:
    x = Inputs.of(case, torch.float64, factor=factor)
    out, d_pre = nothing(case, torch.float64), x.d_hidden.clone()
    sums = aten.hidden_backward(d_pre, x.pre, out, x.factor, case.rows, scale, "gelu")
    assert out.dtype == sums.dtype == torch.float64
    torch.testing.assert_close((out, d_pre, sums.sum(0)), plain(x, case, scale, "gelu"), rtol=1e-12, atol=1e-12)


@IMPLEMENTATIONS
@CASES
def test_the_gradient_alone_is_the_same(ops: ModuleType, case: Case) -> None:
    x = Inputs.of(case, torch.float32, factor=True)
    first, second = x.d_hidden.clone(), x.d_hidden.clone()
    sums = ops.hidden_backward(first, x.pre, nothing(case, torch.float32), x.factor, case.rows, 0.5, "gelu")
    again = ops.hidden_backward(second, x.pre, None, x.factor, case.rows, 0.5, "gelu")
    within = 1e-5 * CUDA  # a GPU's products may be fused; elsewhere the bits are the same
    torch.testing.assert_close((second, again), (first, sums), rtol=within, atol=within)


@IMPLEMENTATIONS
@pytest.mark.parametrize("skip", [True, False], ids=["beside a layer", "alone"])
def test_one_product_gives_the_layer_and_the_branch(ops: ModuleType, skip: bool) -> None:
    """And its transpose their gradients: the bias' is that of the column of ones."""
    case, dtype = Case(3, 7, 24, padded(24)), torch.float64 if ops is aten else torch.float32
    x, generator = Inputs.of(case, dtype, factor=True), torch.Generator().manual_seed(1)
    shapes = (40, 24), (40,), (40, 56), (21, 56), (21, 40)
    drawn = [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]
    leaves = [each.requires_grad_() for each in (x.pre, *drawn[:2], drawn[3])]
    weight, rows, d_out = drawn[2], drawn[3], drawn[4]
    out = of_rows(x, case, 0.7) * F.linear(F.gelu(x.pre), *drawn[:2]) + skip * F.linear(rows, weight)
    true = torch.autograd.grad(out, leaves, d_out)

    with torch.no_grad():
        both = ops.widened(weight if skip else None, drawn[0], drawn[1], dtype)
        wide = torch.cat((rows, nothing(case, dtype)), 1) if skip else nothing(case, dtype)
        columns = wide[:, -case.columns :]
        ops.hidden(x.pre, columns, x.factor, 7, 0.7, "gelu")
        torch.testing.assert_close(wide @ both.T, out)
        d_wide = d_out @ both
        d_pre = d_wide[:, -case.columns :][:, : case.width]
        ops.hidden_backward(d_pre, x.pre, None, x.factor, 7, 0.7, "gelu")
        torch.testing.assert_close(d_pre, true[0])
        d_up = d_out.T @ columns
        torch.testing.assert_close((d_up[:, :24], d_up[:, 24]), true[1:3])
        if skip:
            torch.testing.assert_close(d_wide[:, :56], true[3])


@IMPLEMENTATIONS
def test_a_dropped_clip_gives_and_gets_nothing(ops: ModuleType) -> None:
    case = Case(3, 4, 8, 16)
    x, factor = Inputs.of(case, torch.float32, factor=False), torch.tensor([0.0, 2.0, 0.0], device=DEVICE)
    out, d_pre = nothing(case, torch.float32), x.d_hidden.clone()
    ops.hidden_backward(d_pre, x.pre, out, factor, 4, 0.5, "gelu")
    kept = torch.tensor([0] * 4 + [1] * 4 + [0] * 4, device=DEVICE).bool()
    assert not d_pre[~kept].any() and not out[~kept].any()
    assert d_pre[kept].all() and out[kept, :8].all()
    assert (out[kept, 8] == 1.0).all()


def test_the_same_again_to_the_bit() -> None:
    x = Inputs.of(Case(3, 90, 264, 272), torch.float16, factor=True)
    results = []
    for _ in range(2):
        out, d_pre = nothing(Case(3, 90, 264, 272), torch.float16), x.d_hidden.clone()
        results.append((kernels.hidden_backward(d_pre, x.pre, out, x.factor, 90, 0.5, "gelu"), d_pre, out))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_rows_farther_apart_than_32_bits_can_count() -> None:
    far, case = 2**30, Case(3, 1, 8, 16)
    x = Inputs.of(case, torch.float16, factor=True)
    memory = torch.empty(
        2 * far + 64, device=DEVICE, dtype=torch.float16
    )  # on a CPU, only what is touched takes memory
    pre, d_pre = (memory.as_strided((3, 8), (far, 1), start) for start in (0, 8))
    out = memory.as_strided((3, 16), (far, 1), 16)
    pre.copy_(x.pre)
    d_pre.copy_(x.d_hidden)
    near_out, near_d = nothing(case, torch.float16), x.d_hidden.clone()
    sums = kernels.hidden_backward(near_d, x.pre, near_out, x.factor, 1, 0.5, "gelu")
    assert torch.equal(kernels.hidden_backward(d_pre, pre, out, x.factor, 1, 0.5, "gelu"), sums)
    assert torch.equal(d_pre, near_d) and torch.equal(out, near_out)
    kernels.hidden(pre, out.fill_(7.0), x.factor, 1, 0.5, "gelu")
    assert torch.equal(out, near_out)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand out memory full of NaN, so that an element left out shows."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))


@IMPLEMENTATIONS
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("biased", [True, False], ids=["composed", "alone"])
@pytest.mark.parametrize(
    ("dim", "inner", "width", "parts"),
    [(40, 56, 24, 3), (1, 300, 15, 1), (7, 8, 1, 700), (9, 520, 192, 257), (5, 3, 4, 0)],
)
@pytest.mark.parametrize(
    ("dtype", "held"),
    [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float16, torch.float16)],
    ids=str,
)
def test_gradients(
    ops: ModuleType,
    dtype: torch.dtype,
    held: torch.dtype,
    dim: int,
    inner: int,
    width: int,
    parts: int,
    biased: bool,
) -> None:
    d_down, d_up = drawn((width, inner), (dim, padded(width)), dtype=dtype, turned=False)
    (bias,) = drawn((inner,), dtype=held, turned=False)
    (sums,) = drawn((parts, width), dtype=torch.float32, turned=False)
    given = d_down.clone()
    got = ops.gradients(given, sums, d_up, bias if biased else None)
    d_down_w = d_down.double() + biased * got[1].double()[:, None] * bias.double()
    assert got[0] is given and [each.dtype for each in got] == [dtype, torch.float32, dtype, dtype]
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got[0].double(), d_down_w, rtol=4 * eps, atol=4 * eps * float(d_down_w.abs().max()))
    torch.testing.assert_close(got[1].double(), sums.double().sum(0), rtol=1e-5, atol=1e-4)
    assert torch.equal(got[2], d_up[:, :width]) and torch.equal(got[3], d_up[:, width])
    assert all(each.is_contiguous() for each in got)


# Of the weights as they are held, and of the result. Where a GPU rounds to bfloat16, Triton's interpreter cuts off.
PAIRS = [(torch.float32, torch.float32), (torch.float32, torch.float16), (torch.float16, torch.float32)]
PAIRS += [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), *[(torch.float32, torch.bfloat16)] * CUDA]
WEIGHTS = pytest.mark.parametrize(("given", "dtype"), PAIRS, ids=str)


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype, turned: bool) -> list[Tensor]:
    """Return tensors, and matrices as transposed views if they are ``turned``."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]
    return [x.T.contiguous().T if turned and x.dim() == 2 else x for x in tensors]


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_weights_may_be_of_several_dtypes(ops: ModuleType, dtype: torch.dtype) -> None:
    """A frozen layer may be held in half precision beside an adapter in float32."""
    weight, bias = drawn((16, 16), (16,), dtype=torch.float16, turned=False)
    ours, our_bias = drawn((16, 16), (16,), dtype=torch.float32, turned=False)
    weights, biases = ops.joined([Layer(weight, bias)], Layer(ours, our_bias), dtype)
    assert torch.equal(weights, torch.cat((weight.to(dtype), ours.to(dtype))))
    assert torch.equal(biases, torch.cat((bias.to(dtype), our_bias.to(dtype))))
    got = ops.widened(weight, ours, our_bias, dtype)
    assert torch.equal(got[:, :33], torch.cat((weight.to(dtype), ours.to(dtype), our_bias.to(dtype)[:, None]), 1))


@IMPLEMENTATIONS
def test_what_is_not_finite_stays_where_it_is(ops: ModuleType) -> None:
    weight, up_weight, up_bias = drawn((3, 20), (3, 8), (3,), dtype=torch.float32, turned=False)
    weight[0, 19], up_weight[1, 0], up_bias[2] = float("nan"), float("inf"), float("-inf")
    wide = ops.widened(weight, up_weight, up_bias, torch.float32)
    assert (~wide.isfinite()).nonzero().tolist() == [[0, 19], [1, 20], [2, 28]]
    both, _ = ops.joined([Layer(up_weight, None)], Layer(up_weight, up_bias), torch.float32)
    assert (~both.isfinite()).nonzero().tolist() == [[1, 0], [4, 0]]


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@FACTORS
@pytest.mark.parametrize("width", [24, 48, 192, 256, 320, 384, 512, 1024])
def test_sizes_in_use(width: int, factor: bool) -> None:
    case = Case(2, 1576, width, padded(width))
    check(kernels, case, torch.bfloat16, factor=factor, scale=0.5)
    x, results = Inputs.of(case, torch.bfloat16, factor=factor), []
    for _ in range(2):
        out, d_pre = nothing(case, torch.bfloat16), x.d_hidden.clone()
        results.append((kernels.hidden_backward(d_pre, x.pre, out, x.factor, 1576, 0.5, "gelu"), d_pre, out))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("given", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("dim", "inner", "width"), [(768, 3072, 192), (1024, 4096, 256), (1152, 4304, 288)])
def test_weights_in_use(dim: int, inner: int, width: int, given: torch.dtype) -> None:
    shapes = (dim, inner), (inner, dim), (dim, width), (width, dim), (dim,), (inner,), (width,)
    out_w, in_w, up_w, down_w, up_b, in_b, down_b = drawn(*shapes, dtype=given, turned=False)
    low = torch.bfloat16
    assert torch.equal(kernels.widened(out_w, up_w, up_b, low), aten.widened(out_w, up_w, up_b, low))
    for layers in ([Layer(in_w, in_b)], [Layer(in_w, None), Layer(in_w, in_b)]):
        got, true = (ops.joined(layers, Layer(down_w, down_b), low) for ops in (kernels, aten))
        assert all(torch.equal(a, b) for a, b in zip(got, true, strict=True))
