"""Both implementations of the row-wise parts answer to float64 autograd of the plain formulas."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aim_adapters.ops.frozen import aten

kernels = pytest.importorskip("aim_adapters.ops.frozen.triton")

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
IMPLEMENTATIONS = pytest.mark.parametrize("ops", [aten, kernels], ids=["aten", "triton"])
# Of the residual stream, and of what is computed.
DTYPES = pytest.mark.parametrize(
    ("stream", "low"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
    ],
    ids=str,
)
SHAPES = pytest.mark.parametrize("shape", [(1, 24), (5, 96), (7, 768), (3, 1000), (2, 1024), (1, 2500)], ids=str)
KINDS = {
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x * 0.5**0.5)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": torch.relu,
    "silu": lambda x: x * torch.sigmoid(x),
}


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def near(got: Tensor, plain: Tensor, true: Tensor) -> None:
    """Hold a result to twice the error of PyTorch's operators in the same dtype."""
    assert got.dtype == plain.dtype and got.shape == true.shape
    allowed = 2 * (plain.double() - true).norm() + 4 * torch.finfo(got.dtype).eps * true.norm()
    assert (got.double() - true).norm() <= allowed


def norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    out = (x - x.mean(-1, keepdim=True)) * (x.var(-1, correction=0, keepdim=True) + eps).rsqrt()
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def beside(x: Tensor, before: int = 2) -> tuple[Tensor, Tensor]:
    """Return memory with other columns on both sides of some, and these columns, which hold ``x``."""
    memory = x.new_full((len(x), before + x.shape[1] + 3), 7.0)
    columns = memory[:, before:-3]
    columns.copy_(x)
    return memory, columns


def untouched(memory: Tensor) -> bool:
    """Tell whether the columns on both sides are what they were."""
    return bool((memory[:, :2] == 7.0).all() and (memory[:, -3:] == 7.0).all())


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand out memory full of NaN, so that an element left out shows."""
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, make=make, **k: make(*a, **k).fill_(float("nan")))


def by_autograd(function: Any, x: Tensor, d_out: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(function(x), x, d_out)[0]


def double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double()


@IMPLEMENTATIONS
@DTYPES
@SHAPES
@pytest.mark.parametrize(
    "parameters",
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float16), (torch.float32, None), (None, None)],
    ids=str,
)
def test_layer_norm(
    ops: ModuleType,
    stream: torch.dtype,
    low: torch.dtype,
    shape: tuple[int, int],
    parameters: tuple[torch.dtype | None, torch.dtype | None],
) -> None:
    x = 3 * normal(*shape, dtype=stream) + 5  # a mean that must not drown the variance
    weight, bias = (None if kind is None else normal(shape[1], dtype=kind, seed=1) for kind in parameters)
    true = norm(x.double(), double(weight), double(bias), 1e-3)
    plain = norm(x.float(), *(None if p is None else p.float() for p in (weight, bias)), 1e-3)
    near(ops.layer_norm(x, weight, bias, 1e-3, low), plain.to(low), true)


def test_parameters_of_any_stride() -> None:
    x, d_h = normal(5, 24), normal(5, 24, seed=1)
    weight, bias = normal(24, 3, seed=2)[:, 1], torch.ones(1, device=DEVICE).expand(24)
    for given in ((weight, bias), (weight.contiguous(), bias.contiguous())):
        torch.testing.assert_close(
            kernels.layer_norm(x, *given, 1e-6, torch.float32), aten.layer_norm(x, *given, 1e-6, torch.float32)
        )
    expected = aten.layer_norm_backward(d_h, x, weight, 1e-6, None)
    torch.testing.assert_close(kernels.layer_norm_backward(d_h, x, weight, 1e-6, None), expected)


@IMPLEMENTATIONS
@DTYPES
@SHAPES
@pytest.mark.parametrize("parameters", [True, False], ids=["affine", "plain"])
def test_add_layer_norm(
    ops: ModuleType, stream: torch.dtype, low: torch.dtype, shape: tuple[int, int], parameters: bool
) -> None:
    x, other = 3 * normal(*shape, dtype=stream) + 5, normal(*shape, dtype=low, seed=1)
    weight, bias = (normal(shape[1], seed=seed) if parameters else None for seed in (2, 3))
    total, h = ops.add_layer_norm(x, other, weight, bias, 1e-3, low)
    exact, sum_plain = x.double() + other.double(), (x.float() + other.float()).to(stream)
    near(total, sum_plain, exact)
    near(ops.add(x, other), sum_plain, exact)
    true = norm(total.double(), double(weight), double(bias), 1e-3)
    near(h, norm(total.float(), weight, bias, 1e-3).to(low), true)


@IMPLEMENTATIONS
@pytest.mark.parametrize("stream", [torch.bfloat16, torch.float16], ids=str)
def test_what_is_normalized_is_what_is_stored(ops: ModuleType, stream: torch.dtype) -> None:
    """The backward pass sees no other sum than the rounded one."""
    x, other = normal(5, 96, dtype=stream), normal(5, 96, seed=1)
    total, h = ops.add_layer_norm(x, other, None, None, 1e-5, torch.float32)
    torch.testing.assert_close(h, ops.layer_norm(total, None, None, 1e-5, torch.float32), rtol=1e-5, atol=1e-5)


@IMPLEMENTATIONS
def test_a_branch_is_added_before_it_is_rounded(ops: ModuleType) -> None:
    x = torch.full((1, 24), 2048.0, device=DEVICE, dtype=torch.float16)
    other = torch.full((1, 24), 1 + 2**-12, device=DEVICE)  # a half has 2048 and 2050, and nothing between them
    for total in (ops.add(x, other), ops.add_layer_norm(x, other, None, None, 1e-5, torch.float16)[0]):
        assert total.dtype == torch.float16 and (total == 2050).all()


@IMPLEMENTATIONS
@DTYPES
@SHAPES
@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
def test_layer_norm_backward(
    ops: ModuleType,
    stream: torch.dtype,
    low: torch.dtype,
    shape: tuple[int, int],
    weighted: bool,
    residual: bool,
) -> None:
    x, d_h = 3 * normal(*shape, dtype=stream) + 5, normal(*shape, dtype=low, seed=1)
    weight = normal(shape[1], seed=2) if weighted else None
    d_residual = normal(*shape, dtype=stream, seed=3) if residual else None
    true = by_autograd(lambda x: norm(x, double(weight), None, 1e-3), x.double(), d_h.double())
    plain = by_autograd(lambda x: norm(x, weight, None, 1e-3), x.float(), d_h.float())
    if d_residual is not None:
        true, plain = true + d_residual.double(), plain + d_residual.float()
    near(ops.layer_norm_backward(d_h, x, weight, 1e-3, d_residual), plain.to(stream), true)


@IMPLEMENTATIONS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("low", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 24), (40, 96), (7, 333), (3, 1536), (5, 1024)], ids=str)
def test_activations(ops: ModuleType, kind: str, low: torch.dtype, shape: tuple[int, int]) -> None:
    pre, d_act = 3 * normal(*shape, dtype=low), normal(*shape, dtype=low, seed=1)
    pre[0, :3] = torch.tensor([0.0, -20.0, 20.0])
    kept = pre.clone()
    near(ops.activation(pre, kind), KINDS[kind](pre), KINDS[kind](pre.double()))
    true = by_autograd(KINDS[kind], pre.double(), d_act.double())
    plain = by_autograd(KINDS[kind], pre, d_act)
    got = ops.activation_backward(d_act, pre, kind)
    assert got is d_act and torch.equal(pre, kept)
    near(got, plain, true)


@IMPLEMENTATIONS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 24), (40, 96), (7, 333), (5, 1024)], ids=str)
def test_activations_of_columns_beside_others(ops: ModuleType, kind: str, shape: tuple[int, int]) -> None:
    """The same as by themselves, and nothing beside them is written."""
    alone, d_alone = 3 * normal(*shape), normal(*shape, seed=1)
    (_, pre), (memory, out), (d_memory, d_act) = beside(alone, 9), beside(alone + float("nan")), beside(d_alone)
    true = ops.activation(alone, kind)
    assert ops.activation(pre, kind, out=out) is out
    torch.testing.assert_close(out, true)
    torch.testing.assert_close(ops.activation(pre, kind), true)
    assert ops.activation_backward(d_act, pre, kind) is d_act
    torch.testing.assert_close(d_act, ops.activation_backward(d_alone, alone, kind))
    assert torch.equal(pre, alone) and untouched(memory) and untouched(d_memory)


def test_rows_farther_apart_than_32_bits_can_count() -> None:
    far = 2**30
    memory = torch.empty(
        2 * far + 24, device=DEVICE, dtype=torch.float16
    )  # on a CPU, only what is touched takes memory
    pre, out = (memory[start:].as_strided((3, 8), (far, 1), start) for start in (0, 8))
    alone, d_act = normal(3, 8, dtype=torch.float16), normal(3, 8, dtype=torch.float16, seed=1)
    pre.copy_(alone)
    assert torch.equal(kernels.activation(pre, "gelu", out=out), kernels.activation(alone, "gelu"))
    out.copy_(d_act)
    kernels.activation_backward(out, pre, "gelu")
    assert torch.equal(out, kernels.activation_backward(d_act, alone, "gelu"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_of_a_half_has_its_activation(kind: str) -> None:
    """To one unit in the last place, or to float32's rounding of 1 + erf, where the tail is flat."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    small = every[every.isfinite() & (every.abs() < 1e3)].to(DEVICE)
    pre = F.pad(small, (0, -len(small) % 1024)).view(-1, 1024)  # whole tiles, of which the interpreter takes few
    true = KINDS[kind](pre.double())
    got = kernels.activation(pre, kind).double()
    assert ((got - true).abs() <= 2**-10 * true.abs() + 2e-7 * pre.abs() + 2**-24).all()
    slope = by_autograd(KINDS[kind], pre.double(), torch.ones_like(pre).double())
    if kind == "relu":
        slope[pre == 0] = 0.0
    got = kernels.activation_backward(torch.ones_like(pre), pre, kind).double()
    assert ((got - slope).abs() <= 2**-10 * slope.abs() + 2e-6).all()


@IMPLEMENTATIONS
def test_not_a_number_stays_visible(ops: ModuleType) -> None:
    row = torch.tensor([[float("nan"), 1.0]], device=DEVICE)
    for kind in KINDS:
        assert ops.activation(row, kind).isnan().tolist() == [[True, False]]
    assert ops.layer_norm(row, None, None, 1e-5, torch.float32).isnan().all()


def test_aten_in_float64() -> None:
    x, d_h, weight = (normal(*shape, dtype=torch.float64, seed=i) for i, shape in enumerate([(5, 24), (5, 24), (24,)]))
    true = by_autograd(lambda x: F.layer_norm(x, (24,), weight, None, 1e-5), x, d_h)
    torch.testing.assert_close(aten.layer_norm_backward(d_h, x, weight, 1e-5, x), true + x)
    torch.testing.assert_close(
        aten.layer_norm(x, weight, weight, 1e-5, torch.float64), norm(x, weight, weight, 1e-5), rtol=1e-13, atol=1e-13
    )
    total, h = aten.add_layer_norm(x, d_h, weight, None, 1e-5, torch.float64)
    assert torch.equal(total, x + d_h) and torch.equal(aten.add(x, d_h), total)
    torch.testing.assert_close(h, norm(x + d_h, weight, None, 1e-5), rtol=1e-13, atol=1e-13)
    for kind, function in KINDS.items():
        torch.testing.assert_close(aten.activation(x, kind), function(x))
        true = by_autograd(function, x, d_h)
        torch.testing.assert_close(aten.activation_backward(d_h.clone(), x, kind), true)


@IMPLEMENTATIONS
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [(1, 24), (9, 100), (3, 1024), (2, 2500)], ids=str)
def test_every_element_is_written(ops: ModuleType, shape: tuple[int, int]) -> None:
    x = normal(*shape)
    results = (
        ops.layer_norm(x, None, None, 1e-5, torch.float16),
        *ops.add_layer_norm(x, x, None, None, 1e-5, torch.float16),
        ops.layer_norm_backward(x, x, None, 1e-5, None),
        ops.add(x, x),
        *(ops.activation(x, kind) for kind in KINDS),
    )
    assert all(each.isfinite().all() for each in results)


@IMPLEMENTATIONS
@pytest.mark.parametrize("shape", [(1, 24), (9, 100)], ids=str)
def test_inputs_stay_as_they_are(ops: ModuleType, shape: tuple[int, int]) -> None:
    tensors = [normal(*shape, seed=seed) for seed in range(3)]
    kept = [each.clone() for each in tensors]
    ops.layer_norm(tensors[0], None, None, 1e-5, torch.float32)
    ops.add_layer_norm(tensors[0], tensors[1], None, None, 1e-5, torch.float32)
    ops.add(tensors[0], tensors[1])
    ops.layer_norm_backward(*tensors[:2], None, 1e-5, tensors[2])
    ops.activation(tensors[0], "quick_gelu")
    assert all(torch.equal(a, b) for a, b in zip(tensors, kept, strict=True))


@pytest.mark.parametrize("width", range(1, 8193, 63))
def test_programs_hold_whole_rows(width: int) -> None:
    power = 1 << (width - 1).bit_length()
    rows, warps = kernels.tile(power)
    assert rows * power == max(1024, power) and warps in (1, 2, 4, 8)
    assert rows * power == 1024 * warps  # 32 elements in each thread


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [96, 768, 1000, 1024, 4096, 8192])
def test_sizes_in_use(width: int, dtype: torch.dtype) -> None:
    x, d_h = normal(1577, width, dtype=dtype), normal(1577, width, dtype=torch.bfloat16, seed=1)
    near(
        kernels.layer_norm(x, None, None, 1e-5, torch.bfloat16),
        F.layer_norm(x.float(), (width,)).bfloat16(),
        F.layer_norm(x.double(), (width,)),
    )
    got = [kernels.layer_norm_backward(d_h, x, None, 1e-5, x) for _ in range(2)]
    assert torch.equal(*got)
    true = by_autograd(lambda x: F.layer_norm(x, (width,)), x.double(), d_h.double()) + x.double()
    near(got[0], aten.layer_norm_backward(d_h, x, None, 1e-5, x), true)
    sums = [kernels.add_layer_norm(x, d_h, None, None, 1e-5, torch.bfloat16) for _ in range(2)]
    assert all(torch.equal(*each) for each in zip(*sums, strict=True))
    assert torch.equal(sums[0][0], aten.add(x, d_h)) and torch.equal(kernels.add(x, d_h), sums[0][0])
    exact = F.layer_norm(sums[0][0].double(), (width,))
    near(sums[0][1], F.layer_norm(sums[0][0].float(), (width,)).bfloat16(), exact)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [384, 3072, 4096, 4304])
def test_activations_beside_an_adapter(width: int, kind: str) -> None:
    wide = 3 * normal(1577, width + 192, dtype=torch.bfloat16)
    pre, d_wide = wide[:, :width], normal(1577, width + 208, dtype=torch.bfloat16, seed=1)
    out, d_act = torch.full_like(d_wide, 7.0), d_wide.clone()
    kernels.activation(pre, kind, out=out[:, :width])
    near(out[:, :width], aten.activation(pre, kind), KINDS[kind](pre.double()))
    kernels.activation_backward(d_act[:, :width], pre, kind)
    true = by_autograd(KINDS[kind], pre.double(), d_wide[:, :width].double())
    near(d_act[:, :width], by_autograd(KINDS[kind], pre, d_wide[:, :width]), true)
    assert (out[:, width:] == 7.0).all() and torch.equal(d_act[:, width:], d_wide[:, width:])
