"""Each kind of branch by itself: output and every gradient are those of autograd through the plainest formula."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from aim_adapters.ops.branches import AttentionPlan, MlpPlan, residual
from aim_adapters.ops.branches.plan import TRAINED
from tests.ops.branches.cases import ACTIVATIONS, Case, Tensors, draw, plain_chain

KINDS = ("frames", "tokens", "mlp")
VARIANTS = {
    "whole": Case(),
    "no_adapter": Case(adapter=False),
    "no_layer_scale": Case(gamma=False),
    "no_biases": Case(biases=False),
    "no_biases_no_layer_scale": Case(biases=False, gamma=False),
    "no_biases_no_adapter": Case(biases=False, adapter=False),
    "plain_norm": Case(affine=False),
    "drop_path": Case(clips=3, factor=True),
    "time_bias": Case(time_bias=True),
    "narrow_heads": Case(heads=3, head_dim=2),
    "wide_heads": Case(head_dim=8),
    "one_frame": Case(frames=1),
    "one_token": Case(tokens=1, heads=1),
    "one_of_all": Case(clips=1, frames=1, tokens=1, heads=1),
    "no_clips": Case(clips=0, affine=False),
}


@pytest.fixture(params=VARIANTS)
def case(request: pytest.FixtureRequest) -> Case:
    return VARIANTS[request.param]


def plan_of(case: Case, kind: str) -> AttentionPlan | MlpPlan:
    return case.mlp() if kind == "mlp" else case.attention(kind)


def run(
    x: Tensor, tensors: Tensors, plan: AttentionPlan | MlpPlan, case: Case, d_out: Tensor, *, keep: str, needs: bool
) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
    """Run a branch forwards and backwards; in the backward pass a branch that kept nothing gets what it must have."""
    chain = case.chain(plan)
    with torch.no_grad():
        if isinstance(plan, AttentionPlan):
            out, kept = residual.attention_forward(x, tensors, plan, chain, keep=keep)
            assert keep or not kept
            kept = kept or residual.attention_forward(x, tensors, plan, chain, keep="balanced")[1]
            return out, *residual.attention_backward(d_out, x, tensors, kept, plan, chain, needs_input=needs)
        out, kept = residual.mlp_forward(x, tensors, plan, chain, keep=keep)
        assert keep or not kept
        return out, *residual.mlp_backward(d_out, x, tensors, kept, plan, chain, needs_input=needs)


def check(case: Case, kind: str, *, keep: str = "fast", needs: bool = True) -> None:
    plan = plan_of(case, kind)
    x, tensors = case.tokens_in(), case.tensors(plan)
    d_out = draw(7, *x.shape)
    before = [None if t is None else t.detach().clone() for t in (x, d_out, *tensors)]
    out, d_x, found = run(x, tensors, plan, case, d_out, keep=keep, needs=needs)

    trained = [t for t in tensors[-len(TRAINED) :] if t is not None]
    leaf = x.clone().requires_grad_()
    expected = plain_chain(leaf, tensors, case.chain(plan))
    wanted = iter(torch.autograd.grad(expected, [leaf, *trained], d_out))
    torch.testing.assert_close(out, expected.detach(), rtol=1e-10, atol=1e-10)
    expected_x = next(wanted)
    assert (d_x is not None) == needs
    if d_x is not None:
        torch.testing.assert_close(d_x, expected_x, rtol=1e-10, atol=1e-10)
    compare(found, tensors[-len(TRAINED) :], wanted)
    for now, then in zip((x, d_out, *tensors), before, strict=True):
        assert (now is None and then is None) or torch.equal(now, then)  # type: ignore[arg-type]


def compare(found: Sequence[Tensor | None], trained: Sequence[Tensor | None], wanted: Iterator[Tensor]) -> None:
    assert [g is None for g in found] == [t is None for t in trained]
    for name, gradient in zip(TRAINED, found, strict=True):
        if gradient is not None:
            torch.testing.assert_close(
                gradient, next(wanted), rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.filterwarnings("ignore:var_mean.*degrees of freedom:UserWarning")  # of a batch without clips
@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradients(case: Case, kind: str) -> None:
    check(case, kind)


@pytest.mark.parametrize("needs", [True, False])
@pytest.mark.parametrize("keep", ["", "balanced", "fast"])
@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_kept(kind: str, adapter: bool, keep: str, needs: bool) -> None:
    check(Case(adapter=adapter, time_bias=True, factor=True), kind, keep=keep, needs=needs)


@pytest.mark.parametrize("keep", ["", "balanced", "fast"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, keep: str) -> None:
    check(Case(activation=activation), "mlp", keep=keep)


@pytest.mark.parametrize("over", ["frames", "tokens"])
@pytest.mark.parametrize("skip", [True, False])
def test_inner_skip_belongs_to_the_plan_and_not_to_the_axis(over: str, skip: bool) -> None:
    case = Case()
    plan = case.attention(over)._replace(skip=skip)
    x, tensors = case.tokens_in(), case.tensors(plan)
    d_out = draw(7, *x.shape)
    out, d_x, _ = run(x, tensors, plan, case, d_out, keep="fast", needs=True)
    leaf = x.clone().requires_grad_()
    expected = plain_chain(leaf, tensors, case.chain(plan))
    torch.testing.assert_close(out, expected.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(d_x, torch.autograd.grad(expected, leaf, d_out)[0], rtol=1e-10, atol=1e-10)


def test_dropped_clips_give_the_adapter_nothing() -> None:
    case = replace(VARIANTS["drop_path"], adapter=True)
    for kind in ("frames", "mlp"):
        plan = plan_of(case, kind)
        tensors, x = case.tensors(plan), case.tokens_in()
        tensors[7] = torch.zeros(case.clips, dtype=torch.float64)
        d_out = draw(7, *x.shape)
        out, _, found = run(x, tensors, plan, case, d_out, keep="fast", needs=True)
        assert not any(g.any() for g in found if g is not None)
        if kind == "frames":
            assert torch.equal(out, x)


@pytest.mark.parametrize("keep", ["balanced", "fast"])
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_write_every_element(kind: str, keep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch fills new memory with NaN while it is deterministic."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3, dtype=torch.float64).isnan().all()
        check(Case(time_bias=True, factor=True), kind, keep=keep)
    finally:
        torch.use_deterministic_algorithms(False)
