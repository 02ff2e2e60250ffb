"""Hold the ways to adapt to what makes them comparable, on a small image model."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from benchmarks.motion import costs, ways

WAYS = (*ways.WRAPS, *ways.BASELINES, "random")


@pytest.fixture(scope="module")
def image_model() -> nn.Module:
    torch.manual_seed(0)
    shape = {"img_size": 28, "embed_dim": 32, "num_heads": 2, "num_classes": 0}
    return timm.create_model("vit_small_patch14_dinov2.lvd142m", **shape).eval()


def built(way: str, image_model: nn.Module) -> nn.Module:
    return ways.build(way, image_model, classes=3, frames=2, options={})


@pytest.mark.parametrize("way", WAYS)
def test_no_way_drops_anything_at_random(way: str, image_model: nn.Module) -> None:
    model, video = built(way, image_model).train(), torch.randn(2, 2, 3, 28, 28)
    assert model(video).equal(model(video))


def test_what_is_new_trains_as_adapters_do_and_positions_do_not_decay(image_model: nn.Module) -> None:
    model = built("full-space-time", image_model)
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    groups = [
        (group["share"], group["weight_decay"], {name_of[parameter] for parameter in group["params"]})
        for group in ways.groups_of(model, "full-space-time", 0.05)
    ]
    new = {name for share, _, names in groups for name in names if share > 1}
    assert new == {
        name
        for name in name_of.values()
        if name.startswith("head.") or name == "temporal.0.temporal_embedding" or ".out." in name
    }
    assert {share for share, *_ in groups} == {1.0, ways.SHARE_OF_NEW}
    decaying = set().union(*(names for _, decay, names in groups if decay))
    assert decaying == {name for name in name_of.values() if name.endswith(".weight") and "norm" not in name}
    assert sum(len(names) for *_, names in groups) == len(name_of)


def test_random_weights_are_those_of_a_model_without_layer_scale(image_model: nn.Module) -> None:
    drawn = dict(built("random", image_model).named_parameters())
    assert all(bool((value == 1).all()) for name, value in drawn.items() if name.endswith("gamma"))
    for name, value in image_model.named_parameters():
        assert value.std() == 0 or not drawn[name].equal(value), name


@pytest.mark.parametrize("way", ["linear", "lora", "lora-temporal"])
def test_what_is_merged_answers_the_same_with_fewer_layers(way: str, image_model: nn.Module) -> None:
    model, video = built(way, image_model).eval(), torch.randn(2, 2, 3, 28, 28)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.ndim > 1 and not name.startswith("head"):
                parameter.normal_(std=0.05)
        before = model(video)
        costs.merge(way, model)
        torch.testing.assert_close(model(video), before)
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.fill_(torch.nan)  # no longer read
        assert model(video).isfinite().all()
