"""On a GPU: CUDA graphs train as eager calls do, and a capture that fails leaves nothing behind."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aim_adapters as aim
from tests.core.graph_cases import EAGERLY, same, step
from tests.tiny import trained, video

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def pair(layer: nn.Module | None = None) -> tuple[Any, Any]:
    models = trained().train().cuda(), trained().train().cuda()
    if layer is not None:
        for model in models:
            model.fc_norm = layer
    return models


class Waits(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.sum = x.sum().item()
        return x


class WaitsBackwards(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        if x.requires_grad:
            x.register_hook(lambda gradient: gradient * gradient.sign().abs().amax().item())
        return x


def test_steps_with_two_forward_passes_are_those_of_an_eager_model() -> None:
    models = pair()
    clips = video().cuda()
    aim.graph(models[1], clips)
    for model in models:
        a, b = model(clips), model(clips + 1)
        (a * b).sum().backward()
    same(*models)
    assert [row.runs for row in aim.explain_graphs(models[1])] == ["graph", "graph"]


@pytest.mark.parametrize("layer", [Waits, WaitsBackwards])
def test_a_capture_that_fails_leaves_nothing_behind(layer: type[nn.Module]) -> None:
    eager, model = pair(layer())
    clips = video().cuda()
    with pytest.warns(UserWarning, match=EAGERLY.format("it cannot be captured: .*capturing")):
        aim.graph(model, clips)
    torch.rand(1, device="cuda")
    for each in (eager, model):
        each.fc_norm = nn.Identity()
        step(each, clips)
    same(eager, model)
    assert "graph" in [row.runs for row in aim.explain_graphs(model)]


def test_memory_comes_back() -> None:
    def held() -> int:
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    clips = video(256).cuda()
    aim.graph(trained().train().cuda(), clips)  # libraries keep their work space
    before = held()
    model = aim.graph(trained().train().cuda(), clips)
    assert held() > before
    del model
    assert held() <= before
