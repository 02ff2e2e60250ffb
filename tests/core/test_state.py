"""What is ours is declared in containers, and found there under keys that depend on nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from aim_adapters.config import AIMConfig
from aim_adapters.core.state import AIMState, BlockState, NormState, SharedState, declared_tensors, states
from aim_adapters.layers.adapter import Adapter
from aim_adapters.layers.temporal import new_temporal_embedding


def shared_state(**settings: float) -> SharedState:
    config = AIMConfig(4, tubelet_size=2, attention="eager", **settings)  # type: ignore[arg-type]
    return SharedState(config, new_temporal_embedding(2, 8), bypassed=frozenset({"norm.weight"}))


def block_state(index: int, shared: SharedState, *names: str) -> BlockState:
    adapters = {name: Adapter(8, 2, skip=False) for name in names}
    return BlockState(f"blocks.{index}.", adapters, shared=shared, drop_path=0.1, enters=index == 1, last=index == 1)


def model_with_state() -> nn.Module:
    """Return an image model's skeleton with containers as a wrap registers them."""
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    model.norm = nn.LayerNorm(8)
    shared = shared_state()
    model.add_module("aim", shared)
    shared.add_module("head", nn.Linear(8, 5))
    for index, names in enumerate([("temporal",), ("spatial", "joint")]):
        model.blocks[index].add_module("aim", block_state(index, shared, *names))
    model.norm.add_module("aim", NormState(nn.LayerNorm(8), shared=shared))
    return model


KEYS = {
    "temporal_embedding",
    "head.weight",
    "head.bias",
    "norm.weight",
    "norm.bias",
    *(f"blocks.0.temporal.{part}" for part in Adapter(8, 2, skip=False).state_dict()),
    *(f"blocks.1.{name}.{part}" for name in ("spatial", "joint") for part in Adapter(8, 2, skip=False).state_dict()),
}


def test_shared_state_starts_enabled_with_the_settings() -> None:
    shared = shared_state()
    assert shared.enabled
    assert shared.num_frames == 2  # what attention sees, after tubelets
    assert shared.bypassed == {"norm.weight"}
    assert list(shared.state_dict()) == ["temporal_embedding"]
    assert list(SharedState(AIMConfig(4), None).state_dict()) == []


def test_block_state_holds_the_named_adapters_and_none_else() -> None:
    state = block_state(1, shared_state(), "joint", "temporal_input")
    assert state.temporal is None
    assert state.spatial is None
    assert isinstance(state.joint, Adapter)
    assert isinstance(state.temporal_input, Adapter)
    assert (state.key, state.drop_path, state.enters, state.last) == ("blocks.1.", 0.1, True, True)


@pytest.mark.parametrize("kind", ["block", "norm"])
def test_shared_state_is_held_but_not_registered(kind: str) -> None:
    shared = shared_state()
    state = block_state(0, shared) if kind == "block" else NormState(nn.LayerNorm(8), shared=shared)
    assert state.shared == (shared,)
    assert shared not in list(state.modules())
    assert not any("embedding" in name for name in state.state_dict())


def test_a_copy_shares_its_own_state_and_not_the_originals() -> None:
    model = model_with_state()
    other = copy.deepcopy(model)
    holders = [other.blocks[0].aim, other.blocks[1].aim, other.norm.aim]
    assert all(holder.shared[0] is other.aim for holder in holders)
    assert other.aim is not model.aim


def test_classify_without_a_layer_averages() -> None:
    x = torch.randn(6, 3, 8)
    assert torch.equal(shared_state().classify(x), x.view(3, 2, 3, 8).mean(1))


def test_classify_applies_the_named_layer_to_the_average() -> None:
    shared = shared_state()
    shared.add_module("head", nn.Linear(8, 5))
    shared.add_module("head_dist", nn.Linear(8, 4))
    x = torch.randn(6, 8)
    mean = x.view(3, 2, 8).mean(1)
    torch.testing.assert_close(shared.classify(x), shared.classifier("head")(mean))  # type: ignore[misc]
    assert shared.classify(x, "head_dist").shape == (3, 4)
    assert torch.equal(shared.classify(x, "absent"), mean)
    assert shared.classifier("absent") is None


def test_head_dropout_drops_clip_features_in_training_only() -> None:
    shared = shared_state(head_dropout=0.5)
    layer = nn.Linear(1000, 1000)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(1000))
        layer.bias.zero_()
    shared.add_module("head", layer)
    x = torch.ones(2, 1000)
    assert torch.equal(shared.eval().classify(x), torch.ones(1, 1000))
    torch.manual_seed(0)
    dropped = shared.train().classify(x)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert 400 < (dropped == 0).sum() < 600


def test_states_are_found_in_the_order_of_modules() -> None:
    model = model_with_state()
    assert [type(state) for state in states(model)] == [BlockState, BlockState, NormState, SharedState]
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
