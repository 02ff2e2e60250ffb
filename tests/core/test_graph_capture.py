"""Replays train and predict as eager calls do, and what they return is the caller's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import aim_adapters as aim
from tests.backbones.cases import loss
from tests.core.graph_cases import EAGERLY, FakeGraphs, pair, same, step, ways
from tests.tiny import trained, video


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aim_adapters.core.graphs.CudaGraphs", FakeGraphs)


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


def test_gradients_are_the_callers_own() -> None:
    _, model = pair()
    first = step(model, video())
    held = [p.grad for p in aim.trainable_parameters(model)]
    model.zero_grad()
    step(model, video() + 1)
    assert all(map(torch.equal, first, held))


def test_outputs_are_the_callers_own() -> None:
    _, model = pair()
    with torch.no_grad():
        out = model(video())
        before = out.clone()
        model(video() + 1)
    assert torch.equal(out, before)


def test_the_example_leaves_no_gradients_and_draws_nothing() -> None:
    model = trained(drop_path=0.5).train()
    torch.manual_seed(0)
    aim.graph(model, video())
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3)) and all(p.grad is None for p in model.parameters())


def test_two_forward_passes_before_a_backward_pass() -> None:
    models = pair()
    for model in models:
        a, b = model(video()), model(video() + 1)
        (a * b).sum().backward()
        del a, b
        step(model, video())
    same(*models)
    assert sorted(ways(models[1])) == [("graph", 1), ("graph", 3)]


def test_a_third_forward_pass_runs_eagerly() -> None:
    models = pair()
    a, b, c = (models[0](video() + index) for index in range(3))
    (a * b * c).sum().backward()
    a, b = (models[1](video() + index) for index in range(2))
    with pytest.warns(UserWarning, match=EAGERLY.format("2 forward passes wait for their backward passes already")):
        c = models[1](video() + 2)
    (a * b * c).sum().backward()
    same(*models)


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


def test_outputs_that_are_thrown_away_keep_nothing_waiting() -> None:
    _, model = pair()
    for _ in range(3):
        model(video())
    assert ways(model) == [("graph", 4)]


def test_a_second_backward_pass_is_refused() -> None:
    _, model = pair()
    out = loss(model(video()))
    out.backward(retain_graph=True)
    with pytest.raises(aim.StateError, match=r"can run once.*call backward once"):
        out.backward()


def test_the_gradient_of_the_video() -> None:
    models, gradients = pair(), []
    for model in models:
        x = video().requires_grad_()
        loss(model(x)).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)
    same(*models)


def test_hooks_of_a_parameter_run_once_and_with_the_gradient() -> None:
    eager, model = pair()
    step(eager, video())
    parameter, seen = model.aim.head.weight, []
    parameter.register_hook(lambda gradient: seen.append(1) or gradient * 2)
    model(video(1))  # recorded with the hook
    step(model, video())
    assert len(seen) == 1
    torch.testing.assert_close(parameter.grad, eager.aim.head.weight.grad * 2)
