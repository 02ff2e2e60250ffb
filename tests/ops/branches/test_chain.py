"""Branches one after another as one step of autograd: as autograd computes them, whatever is kept, compiled or not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from aim_adapters.errors import UnsupportedKernelError
from aim_adapters.ops.branches import BranchTensors, ChainPlan, chain, run_branches
from aim_adapters.ops.branches.kept import kept_names
from aim_adapters.ops.branches.plan import encode
from aim_adapters.ops.branches.tensors import flatten
from tests.ops.branches.cases import FRAME, MEMORY, Case, draw, leaves_of, mapped, plain_chain

Branches = list[BranchTensors]
CHAINS = {
    "block": ("frames", "tokens", "mlp"),
    "spatial_first": ("tokens", "mlp"),
    "attention_last": ("frames", "tokens"),
    "temporal_alone": ("frames",),
    "spatial_alone": ("tokens",),
    "mlp_alone": ("mlp",),
    "windows": ("frames", "windows", "mlp"),
    "windows_first": ("windows", "mlp"),
}
CASES = {
    "whole": Case(clips=3, factor=True, time_bias=True),
    "no_adapters": Case(adapter=False),
    "bare": Case(gamma=False, biases=False, affine=False, activation="quick_gelu"),
    "one_frame": Case(frames=1),
    "gated": Case(gated=True, norm="rms", hidden_norm="layer", hidden=11, activation="silu"),
    "entering": Case(clips=3, factor=True, entering=True),
    "linear": Case(clips=3, factor=True, entering=True, linear=True),
    "rotary": Case(rotary="interleaved", inner_norm="layer"),
    "head_norms": Case(rotary="halves", head_norm="rms", place_bias=True),
}


def build(
    case: Case, kinds: tuple[str, ...], *, dtype: str = "float64", memory: str = "fast"
) -> tuple[ChainPlan, Branches, Branches]:
    """Return a plan, the tensors that `run_branches` takes, and those of every branch in full."""
    case = sized(case, kinds)
    plans = [case.mlp() if kind == "mlp" else case.attention(kind) for kind in kinds]
    given: Branches = []
    full: Branches = []
    for index, plan in enumerate(plans):
        tensors = own = case.tensors(plan, seed=100 * index + 1)
        if index and kinds[index] in ("tokens", "windows"):  # attends by the same frozen layer as over time
            plans[index] = case.attention(kinds[index], shares=True)
            tensors, own = tensors._replace(frozen=full[-1].frozen), tensors._replace(frozen=None)
        full.append(tensors)
        given.append(own)
    return case.chain(*plans, dtype=dtype, memory=memory), given, full


def sized(case: Case, kinds: tuple[str, ...]) -> Case:
    """Return the case with as many tokens as windows need."""
    return replace(case, tokens=FRAME[0] * FRAME[1]) if "windows" in kinds else case


def frozen_in(branch: BranchTensors, *names: str, temporal_bias: bool = False) -> BranchTensors:
    """Return a branch some of whose adapter, and perhaps its temporal bias, does not train."""
    adapter, bias, _ = branch.trained
    assert adapter is not None
    adapter = adapter._replace(**{name: getattr(adapter, name).detach() for name in names})
    trained = branch.trained._replace(adapter=adapter, temporal_bias=bias.detach() if temporal_bias else bias)
    return branch._replace(trained=trained)


@pytest.fixture(params=CHAINS)
def kinds(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return CHAINS[request.param]


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_output_and_gradients(case: Case, kinds: tuple[str, ...], memory: str) -> None:
    plan, given, full = build(case, kinds, memory=memory)
    x = sized(case, kinds).tokens_in().requires_grad_()
    d_out = draw(7, *x.shape)
    expected = plain_chain(x, full, plan)
    wanted = torch.autograd.grad(expected, [x, *leaves_of(full)], d_out)
    out = run_branches(x, given, plan)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(torch.autograd.grad(out, [x, *leaves_of(given)], d_out), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    with torch.no_grad():
        assert torch.equal(run_branches(x, given, plan), out)


@pytest.mark.parametrize("memory", MEMORY)
def test_tokens_without_a_gradient_give_the_same_to_what_trains(kinds: tuple[str, ...], memory: str) -> None:
    plan, given, _ = build(CASES["whole"], kinds, memory=memory)
    x = sized(CASES["whole"], kinds).tokens_in()
    gradients = []
    for needs in (True, False):
        out = run_branches(x.detach().requires_grad_(needs), given, plan)
        gradients.append(torch.autograd.grad(out, leaves_of(given), draw(7, *x.shape)))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_nothing_that_trains_records_nothing() -> None:
    plan, given, _ = build(CASES["whole"], CHAINS["block"])
    frozen = mapped(given, Tensor.detach)
    assert not run_branches(CASES["whole"].tokens_in(), frozen, plan).requires_grad


@pytest.mark.parametrize("memory", MEMORY)
def test_some_of_what_trains_may_be_frozen(memory: str) -> None:
    """As while a user freezes one adapter."""
    plan, given, full = build(CASES["whole"], CHAINS["block"], memory=memory)
    for branches in (given, full):
        branches[0] = frozen_in(branches[0], "down_weight", "down_bias", temporal_bias=True)
        branches[1] = frozen_in(branches[1], "up_weight")
    x = CASES["whole"].tokens_in()
    out, expected = run_branches(x, given, plan), plain_chain(x, full, plan)
    for ours, theirs in zip(
        torch.autograd.grad(out.sum(), leaves_of(given)),  # an expanded gradient
        torch.autograd.grad(expected.sum(), leaves_of(full)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("memory", MEMORY)
def test_backward_twice_gives_the_same(memory: str) -> None:
    plan, given, _ = build(CASES["whole"], CHAINS["block"], memory=memory)
    x = CASES["whole"].tokens_in().requires_grad_()
    out = run_branches(x, given, plan)
    once, again = (
        torch.autograd.grad(out, [x, *leaves_of(given)], draw(7, *x.shape), retain_graph=True) for _ in range(2)
    )
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


def test_any_strides() -> None:
    plan, given, _ = build(CASES["whole"], CHAINS["block"])
    x = CASES["whole"].tokens_in()
    strided = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous()
    d_out = draw(7, *x.shape)
    runs = []
    for tokens, gradient in ((x, d_out), (strided, d_out.mT.contiguous().mT)):
        leaf = tokens.detach().requires_grad_()
        out = run_branches(leaf, given, plan)
        runs.append([out, *torch.autograd.grad(out, [leaf, *leaves_of(given)], gradient)])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize("memory", MEMORY)
def test_second_derivatives_are_refused(memory: str) -> None:
    plan, given, _ = build(CASES["whole"], CHAINS["block"], memory=memory)
    x = CASES["whole"].tokens_in().requires_grad_()
    out = run_branches(x, given, plan).square().sum()
    with pytest.raises(UnsupportedKernelError, match=r"no second derivative; .*fused=False"):
        torch.autograd.grad(out, x, create_graph=True)


# What is kept


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_kept_is_what_the_backward_pass_expects(case: Case, kinds: tuple[str, ...]) -> None:
    x, sizes = sized(case, kinds).tokens_in(), {}
    for memory in MEMORY:
        plan, given, _ = build(case, kinds, memory=memory)
        kept = chain._run(x, flatten(given), encode(plan), True)[1:]
        inputs = len(kinds) - 1
        names = [kept_names(b, plan, t, keep=memory) for b, t in zip(plan.branches, given, strict=True)]
        assert len(kept) == (0 if memory == "low" else inputs + sum(map(len, names)))
        sizes[memory] = sum(each.numel() for each in kept)
        assert chain._run(x, flatten(given), encode(plan), False)[1:] == []
    assert sizes["fast"] >= sizes["balanced"] >= sizes["low"] == 0
    assert (sizes["fast"] > sizes["balanced"]) == bool({"frames", "mlp"} & set(kinds))  # both keep attention's


@pytest.mark.parametrize("memory", MEMORY)
def test_autograd_holds_the_input_and_what_is_kept_and_no_more(memory: str) -> None:
    plan, given, _ = build(CASES["whole"], CHAINS["block"], memory=memory)
    x = CASES["whole"].tokens_in()
    own = {t.data_ptr() for t in (x, *flatten(given)) if t is not None}
    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        run_branches(x, given, plan)
    kept = [t for t in held if t.data_ptr() not in own]
    expected = chain._run(x, flatten(given), encode(plan), True)[1:]
    assert [t.shape for t in kept] == [t.shape for t in expected]


# Dtypes


LOW = pytest.mark.parametrize(
    ("dtype", "tokens"),
    [(torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)],
    ids=str,
)
WIDE = Case(clips=3, frames=4, tokens=9, dim=32, heads=2, head_dim=16, hidden=64, width=8, factor=True)


def errors_of(case: Case, dtype: torch.dtype, tokens: torch.dtype, memory: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the errors of output and gradients, ours and those of plain operators, under autocast."""
    name = str(dtype).removeprefix("torch.")
    plan, given, full = build(case, CHAINS["block"], dtype=name, memory=memory)
    x, d_out = case.tokens_in(seed), draw(7 + seed, *case.tokens_in().shape)

    def cast(branches: Branches, to: torch.dtype) -> Branches:
        return mapped(branches, lambda t: t.detach().to(to, copy=True).requires_grad_(t.requires_grad))

    def run(call: Callable[..., Tensor], tensors: Branches, of: torch.dtype) -> list[Tensor]:
        leaf = x.to(of, copy=True).requires_grad_()
        out = call(leaf, tensors, plan)
        return [out.detach(), *torch.autograd.grad(out, [leaf, *leaves_of(tensors)], d_out.to(out.dtype))]

    exact = run(plain_chain, cast(full, torch.float64), torch.float64)
    with torch.autocast("cpu", dtype):
        theirs = run(plain_chain, cast(full, torch.float32), tokens)
        ours = run(run_branches, cast(given, torch.float32), tokens)
    assert [t.dtype for t in ours] == [tokens] * 2 + [torch.float32] * (len(ours) - 2)
    mine, plain = ([(a.double() - b).norm() for a, b in zip(each, exact, strict=True)] for each in (ours, theirs))
    return torch.stack(mine), torch.stack(plain)


@pytest.mark.parametrize("memory", MEMORY)
@LOW
def test_low_precision_errs_no_more_than_twice_what_plain_operators_do(
    dtype: torch.dtype, tokens: torch.dtype, memory: str
) -> None:
    """Products in a low precision, as under autocast; tokens in float32 or in bfloat16; what trains in float32."""
    ours, theirs = errors_of(WIDE, dtype, tokens, memory)
    assert (ours <= 2 * theirs + 1e-12).all(), ours / theirs


@LOW
def test_so_does_an_adapter_in_front_of_the_projection(dtype: torch.dtype, tokens: torch.dtype) -> None:
    """In most draws: of one, the error of a gradient of eight numbers may happen to be small."""
    case = replace(WIDE, entering=True)
    draws = [errors_of(case, dtype, tokens, "fast", seed) for seed in range(0, 90, 10)]
    ratios = torch.stack([ours / theirs for ours, theirs in draws]).median(0).values
    assert (ratios <= 2).all(), ratios


@LOW
def test_so_does_a_gated_mlp(dtype: torch.dtype, tokens: torch.dtype) -> None:
    case = replace(WIDE, gated=True, hidden_norm="layer", activation="silu", hidden=61)
    draws = [errors_of(case, dtype, tokens, "fast", seed) for seed in range(0, 50, 10)]
    ratios = torch.stack([ours / theirs for ours, theirs in draws]).median(0).values
    assert (ratios <= 2).all(), ratios


def test_autocast_does_not_reach_inside() -> None:
    """The plan says what products are computed in."""
    plan, given, _ = build(CASES["whole"], CHAINS["block"])
    x = CASES["whole"].tokens_in()
    expected = run_branches(x, given, plan)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run_branches(x, given, plan), expected)


# Compilers


COMPILED = Case(time_bias=True, factor=True, entering=True)
COMPILED_GATED = replace(COMPILED, gated=True, norm="rms", hidden_norm="layer", hidden=11)


@pytest.mark.parametrize(("memory", "case"), [*((memory, COMPILED) for memory in MEMORY), ("fast", COMPILED_GATED)])
def test_compiled_equals_eager(memory: str, case: Case) -> None:
    plan, given, _ = build(case, CHAINS["block"], memory=memory)
    x = case.tokens_in()
    torch._dynamo.reset()
    compiled = torch.compile(run_branches, backend="aot_eager", fullgraph=True)
    runs = []
    for call in (run_branches, compiled):
        leaf = x.clone().requires_grad_()
        out = call(leaf, given, plan)
        runs.append([out, *torch.autograd.grad(out, [leaf, *leaves_of(given)], draw(7, *x.shape))])
    for ours, theirs in zip(*runs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_compiles_once_for_every_number_of_clips() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(run_branches, backend=counter, fullgraph=True)
    plan, given, _ = build(Case(), CHAINS["block"])
    compiles = []
    for clips in (5, 7):
        x = Case(clips=clips).tokens_in().requires_grad_()
        torch._dynamo.mark_dynamic(x, 0)
        out, expected = compiled(x, given, plan), run_branches(x, given, plan)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
        ours, theirs = (torch.autograd.grad(each.sum(), x)[0] for each in (out, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
        compiles.append(counter.frame_count)
    assert compiles[0] == compiles[1] > 0


@pytest.mark.parametrize("kinds", [CHAINS["block"], CHAINS["windows"], CHAINS["mlp_alone"]], ids="-".join)
@pytest.mark.parametrize("memory", MEMORY)
def test_operators_are_registered_in_full(memory: str, kinds: tuple[str, ...]) -> None:
    plan, given, _ = build(Case(time_bias=True, factor=True, entering=True), kinds, memory=memory)
    check_operators(sized(Case(), kinds).tokens_in(), given, plan)


@pytest.mark.parametrize("memory", MEMORY)
def test_operators_are_registered_in_full_of_norms_and_positions(memory: str) -> None:
    for name in ("rotary", "head_norms"):
        plan, given, _ = build(CASES[name], CHAINS["block"], memory=memory)
        check_operators(CASES[name].tokens_in(), given, plan)


@pytest.mark.parametrize("adapter", [True, False])
def test_so_are_those_of_gated_mlps(adapter: bool) -> None:
    plan, given, _ = build(replace(COMPILED_GATED, adapter=adapter), CHAINS["mlp_alone"])
    check_operators(Case().tokens_in(), given, plan)


def check_operators(x: Tensor, given: Branches, plan: ChainPlan) -> None:
    frozen, text = flatten(mapped(given, Tensor.detach)), encode(plan)
    for train in (True, False):
        check_operator(torch.ops.aim_adapters.branches.default, x, frozen, text, train)
    kept = torch.ops.aim_adapters.branches(x, frozen, text, True)[1:]
    for needs_input in (True, False):
        arguments = (draw(7, *x.shape), x, kept, frozen, text, needs_input)
        check_operator(torch.ops.aim_adapters.branches_backward.default, *arguments)


def check_operator(operator: Any, *arguments: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.library.opcheck(operator, arguments)
