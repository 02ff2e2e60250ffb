"""Tensors by name become the list that the operator takes, and come back under their names."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from aim_adapters.ops.branches.kept import KeptAttention, KeptMlp, flatten_kept, kept_names, select, unflatten_kept
from aim_adapters.ops.branches.tensors import (
    AdapterTensors,
    BranchTensors,
    PositionTensors,
    TrainedTensors,
    WindowTensors,
    flat_gradients,
    flatten,
    unflatten,
    with_shared,
)
from tests.ops.branches.cases import FRAME, MEMORY, Case
from tests.ops.branches.test_chain import CHAINS, build

KINDS = [("frames", "tokens", "mlp"), ("frames", "windows", "mlp"), ("mlp", "tokens")]


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
@pytest.mark.parametrize("case", [Case(time_bias=True, factor=True), Case(adapter=False, gamma=False, biases=False)])
def test_every_tensor_comes_back_under_its_name(case: Case, kinds: tuple[str, ...]) -> None:
    plan, given, full = build(case, kinds)
    flat = flatten(given)
    again = unflatten(flat, plan)
    assert len(flat) == len(kinds) * 28
    for ours, theirs in zip(again, full, strict=True):
        assert type(ours.frozen) is type(theirs.frozen)
        for one, other in zip(flatten([ours]), flatten([theirs]), strict=True):
            assert one is other


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_every_field_of_a_record_has_its_place(kinds: tuple[str, ...], whole: bool) -> None:
    plan, given, _ = build(Case(tokens=FRAME[0] * FRAME[1]), kinds)
    numbers = iter(torch.full((), float(i)) for i in range(1000))

    def filled(kind: Any) -> Any:
        return kind(*(next(numbers) for _ in kind._fields)) if whole else None

    branches = [
        BranchTensors(
            frozen if frozen is None else type(frozen)(*(next(numbers) for _ in frozen)),
            TrainedTensors(filled(AdapterTensors), next(numbers), filled(AdapterTensors)),
            next(numbers),
            filled(WindowTensors),
            filled(PositionTensors),
        )
        for frozen, *_ in given
    ]
    assert unflatten(flatten(branches), plan) == with_shared(branches)
    gradients = flat_gradients(flatten(branches), iter([t for b in branches for t in b.trained.present()]))
    assert gradients == flatten([BranchTensors(None, branch.trained) for branch in branches])


def test_a_branch_that_shares_gives_no_frozen_tensor_itself() -> None:
    _, given, full = build(Case(), CHAINS["block"])
    temporal, spatial, _ = given
    assert spatial.frozen is None
    assert full[1].frozen is temporal.frozen
    assert sum(tensor is not None for tensor in flatten([spatial])) == 4  # its adapter


def test_gradients_lie_where_what_they_are_gradients_of_lies() -> None:
    _, given, _ = build(Case(time_bias=True), CHAINS["block"])
    gradients = flat_gradients(flatten(given), iter(torch.full((), float(i)) for i in range(100)))
    trained = [tensor is not None and tensor.requires_grad for tensor in flatten(given)]
    assert [tensor is not None for tensor in gradients] == trained
    assert [float(tensor) for tensor in gradients if tensor is not None] == list(range(sum(trained)))


@pytest.mark.parametrize(("kind", "memory", "adapter", "precision"), [
    *product(("frames", "tokens", "windows", "mlp"), MEMORY, (True, False), ("auto", "fp8")),
])  # fmt: skip
def test_what_is_kept_comes_back_under_its_name(kind: str, memory: str, adapter: bool, precision: str) -> None:
    case = Case(adapter=adapter, tokens=FRAME[0] * FRAME[1])
    plan, (tensors,), _ = build(case, (kind,))
    plan = plan._replace(frozen_precision=precision)
    (branch,) = plan.branches
    record = KeptMlp if kind == "mlp" else KeptAttention
    names = kept_names(branch, plan, tensors, keep=memory)
    kept = select(record(*(torch.full((), float(i)) for i in range(len(record._fields)))), names)
    assert [name for name, tensor in zip(record._fields, kept, strict=True) if tensor is not None] == names
    assert unflatten_kept(branch, flatten_kept(kept), names) == kept
    assert not names or memory != "low"
