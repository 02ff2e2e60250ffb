"""Calls of a graphed model run as graphs or eagerly, and say why; other tools see the model without them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aim_adapters as aim
from tests.core.graph_cases import EAGERLY, FakeGraphs, pair, same, step, ways
from tests.tiny import FRAMES, base, trained, video


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aim_adapters.core.graphs.CudaGraphs", FakeGraphs)


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
