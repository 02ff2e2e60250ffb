"""Tensors by name become the list that the operator takes, and come back under their names."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from aim_adapters.ops.branches.kept import KeptAttention, KeptMlp, flatten_kept, kept_names, select, unflatten_kept
from aim_adapters.ops.branches.tensors import flat_gradients, flatten, unflatten
from tests.ops.branches.cases import FRAME, MEMORY, Case
from tests.ops.branches.test_chain import CHAINS, build

KINDS = [("frames", "tokens", "mlp"), ("frames", "windows", "mlp"), ("mlp", "tokens")]


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
@pytest.mark.parametrize("case", [Case(time_bias=True, factor=True), Case(adapter=False, gamma=False, biases=False)])
def test_every_tensor_comes_back_under_its_name(case: Case, kinds: tuple[str, ...]) -> None:
    plan, given, full = build(case, kinds)
    flat = flatten(given)
    again = unflatten(flat, plan)
    assert len(flat) == len(kinds) * 16
    for ours, theirs in zip(again, full, strict=True):
        assert type(ours.frozen) is type(theirs.frozen)
        for one, other in zip(flatten([ours]), flatten([theirs]), strict=True):
            assert one is other


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
