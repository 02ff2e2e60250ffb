"""Calls of a graphed model are replayed with the numbers of an eager one, or run eagerly and say why."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aim_adapters as aim
from tests.backbones.cases import loss
from tests.core.graph_cases import FakeGraphs
from tests.tiny import FRAMES, base, trained, video

EAGERLY = "this call runs eagerly, as {} "


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aim_adapters.core.graphs.CudaGraphs", FakeGraphs)


def pair(**arguments: Any) -> tuple[Any, Any]:
    """Return an eager model and an equal one with graphs."""
    eager = trained(**arguments).train()
    return eager, aim.graph(copy.deepcopy(eager), video())


def ways(model: nn.Module) -> list[tuple[str, int]]:
    return [(row.runs, row.calls) for row in aim.explain_graphs(model)]


def step(model: nn.Module, *videos: Tensor) -> list[Tensor]:
    for each in videos:
        loss(model(each)).backward()
    return [p.grad.clone() for p in aim.trainable_parameters(model) if p.grad is not None]


def same(model: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=name)


# Training


@pytest.mark.usefixtures("recorded")
def test_training_with_accumulation_is_that_of_an_eager_model() -> None:
    models = pair(drop_path=0.5, head_dropout=0.3)
    for model in models:
        torch.manual_seed(3)
        optimizer = torch.optim.AdamW(aim.trainable_parameters(model), 1e-2)
        for index in range(3):
            step(model, video() + index, video() - index)
            nn.utils.clip_grad_norm_(aim.trainable_parameters(model), 1.0)
            optimizer.step()
            if index < 2:
                optimizer.zero_grad()
    same(*models)
    assert ways(models[1]) == [("graph", 7)]  # with the example


@pytest.mark.usefixtures("recorded")
def test_gradients_are_the_callers_own() -> None:
    _, model = pair()
    first = step(model, video())
    held = [p.grad for p in aim.trainable_parameters(model)]
    model.zero_grad()
    step(model, video() + 1)
    assert all(map(torch.equal, first, held))


@pytest.mark.usefixtures("recorded")
def test_outputs_are_the_callers_own() -> None:
    _, model = pair()
    with torch.no_grad():
        out = model(video())
        before = out.clone()
        model(video() + 1)
    assert torch.equal(out, before)


@pytest.mark.usefixtures("recorded")
def test_the_example_leaves_no_gradients_and_draws_nothing() -> None:
    model = trained(drop_path=0.5).train()
    torch.manual_seed(0)
    aim.graph(model, video())
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3)) and all(p.grad is None for p in model.parameters())


@pytest.mark.usefixtures("recorded")
def test_two_forward_passes_before_a_backward_pass() -> None:
    models = pair()
    for model in models:
        a, b = model(video()), model(video() + 1)
        (a * b).sum().backward()
        del a, b
        step(model, video())
    same(*models)
    assert sorted(ways(models[1])) == [("graph", 1), ("graph", 3)]


@pytest.mark.usefixtures("recorded")
def test_a_third_forward_pass_runs_eagerly() -> None:
    models = pair()
    a, b, c = (models[0](video() + index) for index in range(3))
    (a * b * c).sum().backward()
    a, b = (models[1](video() + index) for index in range(2))
    with pytest.warns(UserWarning, match=EAGERLY.format("2 forward passes wait for their backward passes already")):
        c = models[1](video() + 2)
    (a * b * c).sum().backward()
    same(*models)


@pytest.mark.usefixtures("recorded")
def test_evaluation_between_forward_and_backward() -> None:
    models = pair()
    outputs = []
    for model in models:
        out = model(video())
        model.eval()
        with torch.no_grad():
            outputs.append(model(video()))
        model.train()
        loss(out).backward()
    same(*models)
    torch.testing.assert_close(*outputs)


@pytest.mark.usefixtures("recorded")
def test_outputs_that_are_thrown_away_keep_nothing_waiting() -> None:
    _, model = pair()
    for _ in range(3):
        model(video())
    assert ways(model) == [("graph", 4)]


@pytest.mark.usefixtures("recorded")
def test_a_second_backward_pass_is_refused() -> None:
    _, model = pair()
    out = loss(model(video()))
    out.backward(retain_graph=True)
    with pytest.raises(aim.StateError, match=r"can run once.*call backward once"):
        out.backward()


@pytest.mark.usefixtures("recorded")
def test_the_gradient_of_the_video() -> None:
    models, gradients = pair(), []
    for model in models:
        x = video().requires_grad_()
        loss(model(x)).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)
    same(*models)


# What a recording depends on


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
    "memory": (lambda model: aim.set_execution(model, memory="low"), 2),
    "attention": (lambda model: aim.set_attention(model, "eager"), 2),
    "base in bfloat16 and back": (
        lambda model: [aim.set_base_dtype(model, d) for d in (torch.bfloat16, torch.float32)], 2,
    ),
    "double precision": (lambda model: model.double(), 2),
}  # fmt: skip


@pytest.mark.usefixtures("recorded")
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


@pytest.mark.usefixtures("recorded")
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


@pytest.mark.usefixtures("recorded")
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


@pytest.mark.usefixtures("recorded")
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


@pytest.mark.usefixtures("recorded")
def test_a_recording_that_was_not_used_for_long_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aim_adapters.core.graphs._IDLE_CALLS", 3)
    model = aim.graph(trained().train(), video(), max_graphs=2)
    for _ in range(4):
        model(video(1))
    model(video(3))
    assert ways(model) == [("graph", 4), ("graph", 1)]


# What runs eagerly


def hook_on_a_layer(model: Any) -> Any:
    return model.blocks[1].mlp.register_forward_hook(lambda *arguments: None)


def hook_on_all(model: Any) -> Any:
    return torch.nn.modules.module.register_module_forward_hook(lambda *arguments: None)


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(
    ("hook", "reason"), [(hook_on_a_layer, "blocks.1.mlp has hooks"), (hook_on_all, "hooks on all modules")]
)
def test_hooks_see_each_call(hook: Callable[[Any], Any], reason: str) -> None:
    eager, model = pair()
    handle = hook(model)
    try:
        with pytest.warns(UserWarning, match=EAGERLY.format(f"{reason}.*must see each call")) as said:
            torch.testing.assert_close(model(video()), eager(video()))
    finally:
        handle.remove()
    assert Path(said[0].filename) == Path(__file__)
    model(video())
    assert ways(model) == [("graph", 2), ("eager", 1)]


@pytest.mark.usefixtures("recorded")
def test_hooks_on_the_model_itself_run_around_a_replay() -> None:
    _, model = pair()
    seen: list[Tensor] = []
    model.register_forward_hook(lambda module, args, out: seen.append(out))
    out = model(video())
    assert seen[0] is out and ways(model) == [("graph", 2)]


@pytest.mark.usefixtures("recorded")
def test_arguments_that_cannot_be_replaced_in_a_graph() -> None:
    class Clip(Tensor):
        pass

    _, model = pair()
    with pytest.warns(UserWarning, match="argument 0 is a Clip"):
        model(video().as_subclass(Clip))


@pytest.mark.usefixtures("recorded")
def test_errors_of_a_call_are_those_of_an_eager_one() -> None:
    _, model = pair()
    with pytest.raises(aim.InputError, match="must be"):
        model(video(channels=2))
    assert ways(model) == [("graph", 1)]


@pytest.mark.usefixtures("recorded")
def test_what_cannot_be_captured_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    eager = trained().train()
    monkeypatch.setattr("tests.core.graph_cases.FakePool.tape", fail)
    with pytest.warns(
        UserWarning, match="it cannot be captured: RuntimeError: operation not permitted when.*capturing "
    ):
        model = aim.graph(copy.deepcopy(eager), video())
    step(model, video())
    step(eager, video())
    same(model, eager)
    assert ways(model) == [("eager", 2)]


@pytest.mark.usefixtures("recorded")
def test_the_first_batch_is_looked_at() -> None:
    model = aim.graph(base_with_adapters(), torch.zeros(2, FRAMES, 3, 16, 16))
    with pytest.warns(UserWarning, match="said once, of the first batch"):
        model(torch.rand(2, FRAMES, 3, 16, 16) * 255)


def base_with_adapters() -> Any:
    return aim.wrap_image_model(base("tiny"), FRAMES).train()


def test_a_model_on_a_cpu_runs_eagerly() -> None:
    eager = trained().train()
    with pytest.warns(UserWarning, match=EAGERLY.format("the model is on a cpu, which has no CUDA graphs")):
        model = aim.graph(copy.deepcopy(eager), video())
    step(model, video())
    step(eager, video())
    same(model, eager)
    assert aim.explain_graphs(model)[0].reason == "the model is on a cpu, which has no CUDA graphs"


# Other tools


@pytest.mark.usefixtures("recorded")
def test_copies_pickles_and_unwrapped_models_have_no_graphs(tmp_path: Path) -> None:
    _, model = pair()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.aim.graphs is None
        torch.testing.assert_close(other(video()), model(video()))
    aim.save_adapters(model, tmp_path)
    before = model(video()).detach()
    aim.load_adapters(model, tmp_path)
    assert torch.equal(model(video()), before)
    kept = model.aim.graphs
    aim.ungraph(model)
    assert model.aim.graphs is None and kept is not None
    aim.unwrap_image_model(model)
    model(video()[0])


@pytest.mark.usefixtures("recorded")
def test_a_compiled_model_has_no_graphs() -> None:
    eager, model = pair()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(video()), eager(video()))
    assert ways(model) == [("graph", 1)]


@pytest.mark.usefixtures("recorded")
def test_tools_of_this_package_look_at_eager_calls() -> None:
    model = aim.graph(trained(), video())
    aim.attention_maps(model, video(1), blocks=[0])
    aim.count_flops(model, image_size=16)
    assert ways(model) == [("graph", 1)]


@pytest.mark.usefixtures("recorded")
def test_features_of_a_graphed_model() -> None:
    eager, model = pair()
    torch.testing.assert_close(aim.extract_features(model, video(2)[0]), aim.extract_features(eager, video(2)[0]))


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("put_around", [torch.compile, torch.nn.DataParallel])
def test_what_other_tools_have_put_around_is_refused(put_around: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(aim.StateError, match=r"graph: .*graph the model first"):
        aim.graph(put_around(trained()), video())


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(
    ("example", "error", "message"),
    [
        (None, aim.ConfigError, "example must be a batch"),
        ([], aim.ConfigError, "example must be a batch"),
        ({"pixel_values": video()}, aim.ConfigError, "example: .*forward does not take these arguments"),
        (video(channels=2), aim.InputError, "example: a video must be"),
    ],
)
def test_a_wrong_example_changes_nothing(example: Any, error: type[Exception], message: str) -> None:
    model = trained()
    with pytest.raises(error, match=message):
        aim.graph(model, example)
    assert model.aim.graphs is None
    with pytest.raises(aim.StateError, match=r"has no graphs; call aim.graph"):
        aim.explain_graphs(model)


@pytest.mark.usefixtures("recorded")
def test_examples_by_place_and_by_name() -> None:
    model = aim.graph(trained(), (video(),))
    aim.graph(model, {"x": video()})
    model(x=video())
    assert ways(model) == [("graph", 2)]
    assert "x=2x4x3x16x16 float32" in repr(aim.explain_graphs(model))
