"""A recording is replayed only while all that it depends on is as it was."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aim_adapters as aim
from tests.backbones.cases import loss
from tests.core.graph_cases import EAGERLY, FakeGraphs, pair, same, ways
from tests.tiny import FRAMES, trained, video


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aim_adapters.core.graphs.CudaGraphs", FakeGraphs)


def swap_values(model: nn.Module) -> None:
    for p in model.parameters():
        p.data = p.data * 1.5


def scale_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)


def assign(model: nn.Module) -> None:
    model.load_state_dict({key: value * 1.5 for key, value in model.state_dict().items()}, assign=True)


def add_adapter(model: nn.Module) -> None:
    torch.manual_seed(0)
    aim.add_adapter(model, "other", aim.AIMConfig(FRAMES, num_classes=3))


def other_adapter(model: nn.Module) -> None:
    add_adapter(model)
    aim.set_adapter(model, "other")


def freeze_head(model: nn.Module) -> None:
    model.aim.head.requires_grad_(False)


def replace_layer(model: Any) -> None:
    model.blocks[1].mlp.fc1 = copy.deepcopy(model.blocks[1].mlp.fc1).requires_grad_(False)
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight.mul_(2)


def setting(model: Any) -> None:
    model.blocks[1].norm2.eps = 0.5


def child_added(model: Any) -> None:
    model.blocks[1].mlp.fc1.add_module("more", nn.Identity())


CHANGES: dict[str, tuple[Callable[[Any], object], int]] = {  # and how many kinds of calls there are then
    "values in place": (scale_in_place, 1),
    "values swapped": (swap_values, 2),
    "values assigned": (assign, 2),
    "evaluation": (lambda model: model.eval(), 2),
    "part of the model in evaluation mode": (lambda model: model.aim.eval(), 2),
    "an adapter added": (add_adapter, 1),
    "another adapter": (other_adapter, 2),
    "head frozen": (freeze_head, 2),
    "layer replaced": (replace_layer, 2),
    "by modules": (lambda model: aim.set_execution(model, fused=False), 2),
    "a setting of a layer": (setting, 2),
    "a layer inside of a layer": (child_added, 2),
    "memory": (lambda model: aim.set_execution(model, memory="low"), 2),
    "attention": (lambda model: aim.set_attention(model, "eager"), 2),
    "base in bfloat16 and back": (
        lambda model: [aim.set_base_dtype(model, d) for d in (torch.bfloat16, torch.float32)], 2,
    ),
    "double precision": (lambda model: model.double(), 2),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change: str) -> None:
    models, (apply, kinds) = pair(), CHANGES[change]
    outputs = []
    for model in models:
        apply(model)
        dtype = next(model.parameters()).dtype
        outputs.append(model(video().to(dtype)))
        loss(outputs[-1]).backward()
    torch.testing.assert_close(*outputs)
    same(*models)
    assert [way for way, _ in ways(models[1])] == ["graph"] * kinds


SURROUNDINGS: dict[str, Callable[[nn.Module], AbstractContextManager[Any]]] = {
    "no gradients": lambda model: torch.no_grad(),
    "inference": lambda model: torch.inference_mode(),
    "autocast": lambda model: torch.autocast("cpu", torch.bfloat16),
    "kernels": lambda model: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    "adapters disabled": aim.disable_adapters,
}


@pytest.mark.parametrize("inside", SURROUNDINGS)
def test_surroundings_are_noticed(inside: str) -> None:
    models = pair()
    for x in (video(), video() + 1):
        outputs = []
        for model in models:
            with SURROUNDINGS[inside](model):
                outputs.append(model(x))
        assert outputs[0].requires_grad == outputs[1].requires_grad
        torch.testing.assert_close(*(out.detach() for out in outputs))
        del outputs
        torch.testing.assert_close(*(model(x).detach() for model in models))
    assert ways(models[1]) == [("graph", 3), ("graph", 2)]


def test_adapters_take_turns_on_the_same_recordings() -> None:
    eager, model = pair()
    outputs: list[list[Tensor]] = [[], []]
    for each, found in zip((eager, model), outputs, strict=True):
        add_adapter(each)
        for name in ("other", "default", "other", "default"):
            aim.set_adapter(each, name)
            found.append(each(video()).detach())
    torch.testing.assert_close(*outputs)
    assert sorted(ways(model)) == [("graph", 2), ("graph", 3)]
    aim.delete_adapter(model, "other")
    assert ways(model) == [("graph", 3)]


def test_shapes_beyond_the_bound_run_eagerly() -> None:
    eager = trained().train()
    model = aim.graph(copy.deepcopy(eager), video(), max_graphs=2)
    model(video(1))
    with pytest.warns(
        UserWarning, match=EAGERLY.format("2 other kinds of calls are recorded; pass max_graphs= for more")
    ):
        torch.testing.assert_close(model(video(3)), eager(video(3)))
    model(video(3))  # said once
    assert ways(model) == [("graph", 1), ("graph", 1), ("eager", 2)]


def test_a_recording_that_was_not_used_for_long_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aim_adapters.core.graphs._IDLE_CALLS", 3)
    model = aim.graph(trained().train(), video(), max_graphs=2)
    for _ in range(4):
        model(video(1))
    model(video(3))
    assert ways(model) == [("graph", 4), ("graph", 1)]


def test_settings_that_a_call_changes_itself_are_none() -> None:
    class Counting(nn.Identity):
        calls = 0

        def forward(self, input: Tensor) -> Tensor:
            self.calls += 1
            return input

    model = trained().train()
    model.blocks[0].mlp.drop1 = Counting()
    model(video())
    aim.graph(model, video())
    for _ in range(3):
        model(video())
    assert ways(model) == [("graph", 4)]


def test_attributes_of_the_model_itself_are_free_for_the_caller() -> None:
    _, model = pair()
    for index in range(3):
        model.last = index
        model(video())
    assert ways(model) == [("graph", 4)]


def test_a_model_that_nobody_has_is_freed_at_once() -> None:
    _, model = pair()
    model(video())
    for recording in model.aim.graphs._parts[0].recorded.values():
        recording._taped = None  # unlike a CUDA graph, the fake one holds the model
    gone = [weakref.ref(each) for each in (model, model.aim, model.blocks[1].mlp.fc1)]
    gc.disable()
    try:
        del model
        assert all(each() is None for each in gone)
    finally:
        gc.enable()
