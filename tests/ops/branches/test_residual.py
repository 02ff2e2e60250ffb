"""Each kind of branch by itself: output and every gradient are those of autograd through the plainest formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from aim_adapters.ops.branches import AttentionPlan, MlpPlan, run_branches
from aim_adapters.ops.branches.tensors import AdapterTensors, flatten
from tests.ops.branches.cases import ACTIVATIONS, FRAME, MEMORY, Case, draw, plain_chain

KINDS = ("frames", "tokens", "windows", "mlp")
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
    "entering": Case(clips=3, factor=True, time_bias=True, entering=True),
    "entering_alone": Case(adapter=False, biases=False, affine=False, entering=True),
    "narrow_heads": Case(heads=3, head_dim=2),
    "wide_heads": Case(head_dim=8),
    "wide_adapter": Case(width=20),
    "one_frame": Case(frames=1),
    "one_token": Case(tokens=1, heads=1),
    "one_of_all": Case(clips=1, frames=1, tokens=1, heads=1, width=1),
    "no_clips": Case(clips=0),
    "head_norms": Case(head_norm="layer"),
    "head_rms": Case(head_norm="rms", gamma=False),
    "rotary": Case(rotary="interleaved", time_bias=True),
    "rotary_halves_per_head": Case(rotary="halves", per_head=True, head_dim=6),
    "rotary_behind_norms": Case(rotary="halves", head_norm="layer"),
    "inner_norm": Case(inner_norm="layer"),
    "inner_norm_no_adapter": Case(inner_norm="layer", adapter=False),
    "inner_norm_no_biases": Case(inner_norm="layer", biases=False, head_dim=7),
    "place_bias": Case(place_bias=True),
    "linear": Case(clips=3, factor=True, time_bias=True, entering=True, linear=True),
    "rms": Case(norm="rms", entering=True, inner_norm="rms"),
    "rms_no_adapter": Case(norm="rms", inner_norm="rms", adapter=False, head_norm="rms"),
    "all_of_it": Case(clips=3, factor=True, entering=True, head_norm="rms", rotary="interleaved", inner_norm="layer"),
}


@pytest.fixture(params=VARIANTS)
def case(request: pytest.FixtureRequest) -> Case:
    return VARIANTS[request.param]


def plan_of(case: Case, kind: str) -> AttentionPlan | MlpPlan:
    return case.mlp() if kind == "mlp" else case.attention(kind)


def check(case: Case, kind: str, *, memory: str = "fast", needs: bool = True) -> None:
    """Hold a branch to autograd, and see that it leaves what it is given alone."""
    case = replace(case, tokens=FRAME[0] * FRAME[1]) if kind == "windows" else case
    plan = plan_of(case, kind)
    x, tensors, chain = case.tokens_in(), case.tensors(plan), case.chain(plan, memory=memory)
    d_out, trained = draw(7, *x.shape), tensors.trained
    before = [None if t is None else t.detach().clone() for t in (x, d_out, *flatten([tensors]))]
    runs: list[list[Tensor]] = []
    names = ["input"] * needs + [*AdapterTensors._fields] * (trained.adapter is not None)
    names += ["temporal_bias"] * (trained.temporal_bias is not None)
    names += [*AdapterTensors._fields] * (trained.input_adapter is not None)
    for run in (run_branches, plain_chain):
        leaf = x.detach().requires_grad_(needs)
        out = run(leaf, [tensors], chain)
        assert out.requires_grad == bool(names)
        runs.append([out.detach()])
        if names:
            leaves = ([leaf] if needs else []) + trained.present()
            runs[-1] += torch.autograd.grad(out, leaves, d_out)
    for name, ours, theirs in zip(["output", *names], *runs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
    for now, then in zip((x, d_out, *flatten([tensors])), before, strict=True):
        assert (now is None and then is None) or torch.equal(now, then)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:var_mean.*degrees of freedom:UserWarning")  # of a batch without clips
@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradients(case: Case, kind: str) -> None:
    check(case, kind)


@pytest.mark.parametrize("needs", [True, False])
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_kept(kind: str, adapter: bool, memory: str, needs: bool) -> None:
    case = Case(adapter=adapter, time_bias=True, factor=True, entering=True)
    check(case, kind, memory=memory, needs=needs)
    between = {"rotary": "halves", "inner_norm": "layer", "place_bias": True}
    check(replace(case, **between), kind, memory=memory, needs=needs)
    check(replace(case, **between, head_norm="layer"), kind, memory=memory, needs=needs)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, memory: str) -> None:
    check(Case(activation=activation), "mlp", memory=memory)


GATED = {
    "gated": Case(gated=True),
    "gated_odd": Case(gated=True, hidden=11),
    "gated_inner_norm": Case(gated=True, hidden_norm="layer", hidden=11, activation="silu"),
    "inner_norm": Case(hidden_norm="layer"),
    "inner_rms": Case(hidden_norm="rms", gated=True, affine=False),
    "rms": Case(norm="rms", activation="silu"),
    "rms_gated_no_biases": Case(norm="rms", gated=True, biases=False, gamma=False, activation="silu"),
    "all_and_drop_path": Case(clips=3, norm="rms", gated=True, hidden_norm="layer", hidden=13, factor=True),
}


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("case", GATED.values(), ids=GATED)
def test_gated_mlps_and_their_norms(case: Case, memory: str, adapter: bool) -> None:
    for needs in (True, False):
        check(replace(case, adapter=adapter), "mlp", memory=memory, needs=needs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_that_gate(activation: str) -> None:
    check(Case(activation=activation, gated=True, hidden_norm="layer"), "mlp")
    check(Case(activation=activation, gated=True), "mlp")


@pytest.mark.parametrize("kind", ["frames", "mlp"])
def test_dropped_clips_give_the_adapter_nothing(kind: str) -> None:
    case = VARIANTS["drop_path"]
    plan = plan_of(case, kind)
    tensors = case.tensors(plan)._replace(factor=torch.zeros(case.clips, dtype=torch.float64))
    x = case.tokens_in()
    out = run_branches(x, [tensors], case.chain(plan))
    found = torch.autograd.grad(out, tensors.trained.present(), draw(7, *x.shape))
    assert not any(gradient.any() for gradient in found)
    if kind == "frames":
        assert torch.equal(out, x)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("kind", KINDS)
def test_every_element_is_written(kind: str, memory: str) -> None:
    """PyTorch fills new memory with NaN while it is deterministic."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3, dtype=torch.float64).isnan().all()
        check(Case(time_bias=True, factor=True, entering=True), kind, memory=memory)
        if kind == "mlp":
            check(GATED["all_and_drop_path"], kind, memory=memory)
            check(GATED["gated_odd"], kind, memory=memory)
    finally:
        torch.use_deterministic_algorithms(False)
