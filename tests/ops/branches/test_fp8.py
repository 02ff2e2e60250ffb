"""Branches by float8: the same algebra where nothing is rounded, and near it where float8 rounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from aim_adapters.ops.branches import run_branches
from aim_adapters.ops.branches.plan import decode, encode
from aim_adapters.ops.branches.tensors import flatten
from aim_adapters.ops.frozen import aten_fp8
from tests.ops.branches.cases import ACTIVATIONS, MEMORY, Case, draw, leaves_of, plain_adapter, plain_chain
from tests.ops.branches.test_chain import CHAINS, Branches, build, check_operators

CASES = {
    "whole": Case(clips=3, factor=True, time_bias=True),
    "no_adapters": Case(adapter=False),
    "bare": Case(gamma=False, biases=False, affine=False, activation="quick_gelu"),
    "one_frame": Case(frames=1),
    "entering": Case(clips=3, factor=True, entering=True),
    "between": Case(rotary="interleaved", head_norm="layer", inner_norm="layer"),
    "no_clips": Case(clips=0),
}
# Wide enough for errors to average out as they do in a model.
WIDE = Case(clips=3, tokens=8, dim=64, heads=4, head_dim=16, hidden=256, width=16, factor=True, gamma=False)


@pytest.fixture
def unrounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scale, but do not round: scales themselves are float32."""
    monkeypatch.setattr(aten_fp8, "DTYPE", torch.float64)


def gradients(case: Case, tensors: Branches, out: Tensor, x: Tensor) -> list[Tensor]:
    return [out.detach(), *torch.autograd.grad(out, [x, *leaves_of(tensors)], draw(7, *x.shape).to(x.dtype))]


@pytest.mark.filterwarnings("ignore:var_mean.*degrees of freedom:UserWarning")  # of a batch without clips
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kinds", CHAINS.values(), ids=CHAINS)
def test_algebra(kinds: tuple[str, ...], case: Case, memory: str, unrounded: None) -> None:
    plan, given, full = build(case, kinds, memory=memory)
    x = (replace(case, tokens=24) if "windows" in kinds else case).tokens_in().requires_grad_()
    ours = gradients(case, given, run_branches(x, given, plan._replace(frozen_precision="fp8")), x)
    theirs = gradients(case, full, plain_chain(x, full, plan), x)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max([1.0, *other.abs().flatten().tolist()]))
    with torch.no_grad():
        assert torch.equal(run_branches(x, given, plan._replace(frozen_precision="fp8")), ours[0])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, unrounded: None) -> None:
    plan, given, full = build(Case(activation=activation), ("mlp",))
    x = Case().tokens_in().requires_grad_()
    ours = gradients(Case(), given, run_branches(x, given, plan._replace(frozen_precision="fp8")), x)
    for one, other in zip(ours, gradients(Case(), full, plain_chain(x, full, plan), x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stream", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("kinds", [("frames", "tokens", "mlp"), ("tokens",), ("mlp",)], ids=len)
def test_rounds_as_float8_does(kinds: tuple[str, ...], memory: str, stream: torch.dtype) -> None:
    dtype = "bfloat16" if stream == torch.bfloat16 else str(stream).removeprefix("torch.")
    plan, given, full = build(WIDE, kinds, dtype=dtype, memory=memory)
    # As of a trained model: norms of 1, weights that keep them.
    for tensor in {id(t): t for t in flatten(full) if t is not None and t.ndim == 2 and t.shape[1] >= 16}.values():
        tensor.data.copy_(tensor.data * tensor.shape[1] ** -0.5 / tensor.data.std())
    true = WIDE.tokens_in().requires_grad_()
    expected = gradients(WIDE, full, plain_chain(true, full, plan), true)
    x = true.detach().to(stream).requires_grad_()
    fp8 = gradients(WIDE, given, run_branches(x, given, plan._replace(frozen_precision="fp8")), x)
    auto = gradients(WIDE, given, run_branches(x, given, plan), x)
    for one, other, reference in zip(fp8, auto, expected, strict=True):
        assert one.dtype == other.dtype and one.isfinite().all()
        error, plain = ((each.double() - reference).norm() / reference.norm() for each in (one, other))
        assert error < 0.1 + 2 * plain
    assert (fp8[0].double() - expected[0]).norm() > 1e-3 * expected[0].norm()


@pytest.mark.parametrize("kind", ["frames", "tokens"])
def test_the_gradient_of_the_projection_is_multiplied_in_float8(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, given, _ = build(WIDE, (kind,))
    x, quantize, shapes = WIDE.tokens_in().requires_grad_(), aten_fp8.quantize, []
    out = run_branches(x, given, plan._replace(frozen_precision="fp8"))
    monkeypatch.setattr(aten_fp8, "quantize", lambda each: shapes.append(tuple(each.shape)) or quantize(each))
    gradients(WIDE, given, out, x)
    rows, packed = x.shape[0] * x.shape[1], 3 * WIDE.heads * WIDE.head_dim
    assert (rows, packed) in shapes and (WIDE.dim, packed) in shapes  # and the weights, by their columns


@pytest.mark.parametrize("memory", ["balanced", "low"])
@pytest.mark.parametrize("kinds", CHAINS.values(), ids=CHAINS)
def test_what_is_computed_again_is_the_same(kinds: tuple[str, ...], memory: str) -> None:
    case, found = replace(WIDE, tokens=24, entering=True), []
    for each in ("fast", memory):
        plan, given, _ = build(case, kinds, memory=each)
        x = case.tokens_in().requires_grad_()
        found.append(gradients(case, given, run_branches(x, given, plan._replace(frozen_precision="fp8")), x))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("factor", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["frames", "mlp"])
def test_products_of_adapters_are_exact(kind: str, factor: float) -> None:
    """What an adapter adds is not rounded to float8, whatever the frozen layer does with the tokens beside it."""
    plan, given, _ = build(WIDE, (kind,))
    plan, x = plan._replace(frozen_precision="fp8"), WIDE.tokens_in()
    (branch,) = given
    with_it, without = (
        run_branches(x, [branch._replace(factor=torch.full((3,), each, dtype=torch.float64))], plan)
        for each in (factor, 0.0)
    )
    if kind == "frames":
        assert torch.equal(without, x)
        return
    assert branch.frozen is not None and branch.trained.adapter is not None
    h = torch.nn.functional.layer_norm(x, x.shape[-1:], branch.frozen.norm_weight, branch.frozen.norm_bias, 1e-5)
    adapter = plain_adapter(h, branch.trained.adapter, None, WIDE.frames)
    torch.testing.assert_close(with_it - without, 0.7 * factor * adapter, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("kinds", CHAINS.values(), ids=CHAINS)
def test_every_element_is_written(kinds: tuple[str, ...], memory: str) -> None:
    """PyTorch fills new memory with NaN while it is deterministic."""
    plan, given, _ = build(CASES["whole"], kinds, memory=memory)
    x = replace(CASES["whole"], tokens=24 if "windows" in kinds else 4).tokens_in().requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        found = gradients(CASES["whole"], given, run_branches(x, given, plan._replace(frozen_precision="fp8")), x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(each.isfinite().all() for each in found)


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("memory", MEMORY)
def test_operators_are_registered_in_full(memory: str, adapter: bool) -> None:
    case = Case(time_bias=True, factor=True, adapter=adapter, entering=True)
    plan, given, _ = build(case, CHAINS["block"], memory=memory)
    check_operators(case.tokens_in(), given, plan._replace(frozen_precision="fp8"))


def test_the_text_says_so() -> None:
    plan, _, _ = build(Case(), CHAINS["block"])
    assert decode(encode(plan)).frozen_precision == "auto"
    assert decode(encode(plan._replace(frozen_precision="fp8"))).frozen_precision == "fp8"
