"""What is ours is declared in containers, and found there under keys that depend on nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from aim_adapters.backbones import read_anatomy
from aim_adapters.config import AIMConfig, Execution
from aim_adapters.core.records import RootCall, WrapRecord
from aim_adapters.core.state import (
    AdapterSet,
    AIMState,
    BlockState,
    NormState,
    RootState,
    by_modules,
    declared_tensors,
    states,
    without_classifiers,
)
from aim_adapters.layers import Adapter, new_temporal_embedding
from tests.tiny import base

RECORD = WrapRecord(read_anatomy(base()), frozenset(), frozenset())


def root_state(name: str = "default", **settings: Any) -> RootState:
    config = AIMConfig(4, tubelet_size=2, **settings)
    embedding = new_temporal_embedding(2, 8)
    return RootState(
        config, embedding, name=name, record=RECORD, execution=Execution("eager"), bypassed=frozenset({"norm.weight"})
    )


def block_state(index: int, root: RootState, *names: str) -> BlockState:
    adapters = {name: Adapter(8, 2, skip=False) for name in names}
    return BlockState(f"blocks.{index}.", adapters, root=root, drop_path=0.1, enters=index == 1, last=index == 1)


def model_with_state() -> nn.Module:
    """Return an image model's skeleton with containers as a wrap registers them."""
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    model.norm = nn.LayerNorm(8)
    root = root_state()
    model.add_module("aim", root)
    root.add_module("head", nn.Linear(8, 5))
    for index, names in enumerate([("temporal",), ("spatial", "joint")]):
        model.blocks[index].add_module("aim", block_state(index, root, *names))
    model.norm.add_module("aim", NormState(nn.LayerNorm(8), root=root))
    return model


def adapter_set(name: str) -> AdapterSet:
    root = root_state(name)
    return AdapterSet([root, block_state(0, root, "joint")])


KEYS = {
    "temporal_embedding",
    "head.weight",
    "head.bias",
    "norm.weight",
    "norm.bias",
    *(f"blocks.0.temporal.{part}" for part in Adapter(8, 2, skip=False).state_dict()),
    *(f"blocks.1.{name}.{part}" for name in ("spatial", "joint") for part in Adapter(8, 2, skip=False).state_dict()),
}


# One container


def test_root_state_starts_enabled_with_the_settings() -> None:
    state = root_state()
    assert state.enabled
    assert state.num_frames == 2  # what attention sees, after tubelets
    assert state.bypassed == {"norm.weight"}
    assert state.execution == Execution("eager")
    assert state.anatomy is RECORD.anatomy
    assert list(state.state_dict()) == ["temporal_embedding"]
    bare = RootState(AIMConfig(4), None, name="x", record=RECORD, execution=Execution())
    assert list(bare.state_dict()) == []


def test_block_state_holds_the_named_adapters_and_none_else() -> None:
    state = block_state(1, root_state(), "joint", "temporal_input")
    assert state.temporal is None
    assert state.spatial is None
    assert isinstance(state.joint, Adapter)
    assert isinstance(state.temporal_input, Adapter)
    assert (state.key, state.drop_path, state.enters, state.last) == ("blocks.1.", 0.1, True, True)


@pytest.mark.parametrize("kind", ["block", "norm"])
def test_root_state_is_held_but_not_registered(kind: str) -> None:
    root = root_state()
    state = block_state(0, root) if kind == "block" else NormState(nn.LayerNorm(8), root=root)
    assert state.root_state is root
    assert root not in list(state.modules())
    assert not any("embedding" in name for name in state.state_dict())


def test_a_copy_shares_its_own_state_and_not_the_originals() -> None:
    model = model_with_state()
    other = copy.deepcopy(model)
    holders = [other.blocks[0].aim, other.blocks[1].aim, other.norm.aim]
    assert all(holder.root_state is other.aim for holder in holders)
    assert other.aim is not model.aim


def test_what_holds_for_a_while_is_not_copied() -> None:
    state = root_state()
    state.enabled, state.headless, state.call = False, True, RootCall.here(class_token_only=True)
    other = copy.deepcopy(state)
    assert (other.enabled, other.headless, other.call) == (True, False, None)
    assert (state.enabled, state.headless) == (False, True)


def test_ways_to_run_hold_for_a_while() -> None:
    state = root_state()
    with pytest.raises(RuntimeError, match="inside"), by_modules(state), without_classifiers(state):
        assert state.execution == Execution("eager", fused=False)
        assert state.headless
        raise RuntimeError("inside")
    assert state.execution == Execution("eager")
    assert not state.headless


# Classification


def test_classify_without_a_layer_averages() -> None:
    x = torch.randn(6, 3, 8)
    assert torch.equal(root_state().classify(x), x.view(3, 2, 3, 8).mean(1))


def test_classify_applies_the_named_layer_to_the_average() -> None:
    state = root_state()
    state.add_module("head", nn.Linear(8, 5))
    state.add_module("head_dist", nn.Linear(8, 4))
    x = torch.randn(6, 8)
    mean = x.view(3, 2, 8).mean(1)
    torch.testing.assert_close(state.classify(x), state.classifier("head")(mean))  # type: ignore[misc]
    assert state.classify(x, "head_dist").shape == (3, 4)
    assert torch.equal(state.classify(x, "absent"), mean)
    assert state.classifier("absent") is None
    with without_classifiers(state):
        assert torch.equal(state.classify(x), mean)


def test_head_dropout_drops_clip_features_in_training_only() -> None:
    state = root_state(head_dropout=0.5)
    layer = nn.Linear(1000, 1000)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(1000))
        layer.bias.zero_()
    state.add_module("head", layer)
    x = torch.ones(2, 1000)
    assert torch.equal(state.eval().classify(x), torch.ones(1, 1000))
    torch.manual_seed(0)
    dropped = state.train().classify(x)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert 400 < (dropped == 0).sum() < 600


# Found


def test_states_are_found_in_the_order_of_modules() -> None:
    model = model_with_state()
    assert [type(state) for state in states(model)] == [BlockState, BlockState, NormState, RootState]
    assert list(states(nn.Linear(2, 2))) == []
    assert all(isinstance(state, AIMState) for state in states(model))


def test_declared_tensors_have_keys_that_name_roles() -> None:
    model = model_with_state()
    tensors = declared_tensors(model)
    assert set(tensors) == KEYS
    parameters = dict(model.named_parameters())
    assert tensors["norm.weight"] is parameters["norm.aim.norm.weight"]
    assert tensors["blocks.0.temporal.up_proj.bias"] is parameters["blocks.0.aim.temporal.up_proj.bias"]
    assert tensors["temporal_embedding"] is parameters["aim.temporal_embedding"]


@pytest.mark.parametrize("depth", [1, 3])
def test_keys_do_not_depend_on_what_holds_the_model(depth: int) -> None:
    holder = model_with_state()
    for _ in range(depth):
        holder = nn.Sequential(nn.Identity(), holder)
    assert set(declared_tensors(holder)) == KEYS


# The shelf


def test_shelf_is_there_only_while_it_holds_something() -> None:
    state, (one, two) = root_state(), map(adapter_set, ("one", "two"))
    assert state.idle_adapters() == {}
    before = list(state.state_dict())
    state.shelve(one)
    state.shelve(two)
    assert state.idle_adapters() == {"one": one, "two": two}
    assert all(key.startswith(("idle.one.", "idle.two.")) for key in state.state_dict().keys() - set(before))
    assert state.unshelve("one") is one
    assert state.idle_adapters() == {"two": two}
    assert state.unshelve("two") is two
    assert state.idle_adapters() == {}
    assert list(state.state_dict()) == before
    with pytest.raises(KeyError, match="one"):
        state.unshelve("one")


def test_what_lies_on_the_shelf_is_not_declared_and_not_found() -> None:
    model = model_with_state()
    model.aim.shelve(adapter_set("one"))
    assert set(declared_tensors(model)) == set(model.aim.declared()) | KEYS == KEYS
    assert len(list(states(model))) == 4


def test_shelf_has_the_mode_of_what_holds_it() -> None:
    state, adapter = root_state().eval(), adapter_set("one").train()
    state.shelve(adapter)
    assert not any(module.training for module in adapter.modules())
    assert all(module.training for module in state.train().modules())


def test_shelf_changes_hands_whole() -> None:
    old, new, adapter = root_state("old"), root_state("new"), adapter_set("one")
    new.take_over_shelf(old)  # of nothing
    assert new.idle_adapters() == old.idle_adapters() == {}
    old.shelve(adapter)
    new.take_over_shelf(old)
    assert new.idle_adapters() == {"one": adapter}
    assert old.idle_adapters() == {}
    assert "idle" not in dict(old.named_children())


def test_adapter_at_rest_is_frozen_and_remembers_what_trains() -> None:
    adapter = adapter_set("one")
    assert adapter.state is adapter.containers[0]
    assert set(adapter.declared()) == {"temporal_embedding"} | {
        f"blocks.0.joint.{part}" for part in Adapter(8, 2, skip=False).state_dict()
    }
    adapter.state.temporal_embedding.requires_grad_(False)  # type: ignore[union-attr]
    adapter.rest()
    assert not any(parameter.requires_grad for parameter in adapter.parameters())
    assert adapter.state.trains == set(adapter.declared()) - {"temporal_embedding"}
