"""What a model costs here, measured without a trace."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import aim_adapters as aim
from aim_adapters.analysis import profile_model
from aim_adapters.errors import ConfigError, StateError
from tests.backbones.cases import assert_same, snapshot
from tests.tiny import base, trained


def test_everything_is_measured_and_nothing_changed() -> None:
    model = trained().train()
    aim.trainable_parameters(model)[0].grad = torch.ones_like(aim.trainable_parameters(model)[0])
    before, draws = snapshot(model), torch.get_rng_state()
    passes: list[tuple[int, int]] = []
    found = profile_model(model, batch_size=2, repeats=1, progress=lambda *done: passes.append(done))
    assert_same(before, snapshot(model))
    assert torch.equal(draws, torch.get_rng_state())
    assert bool((aim.trainable_parameters(model)[0].grad == 1).all())
    assert aim.trainable_parameters(model)[1].grad is None
    assert model.training
    assert (found.trainable, found.parameters) == tuple(aim.count_parameters(model))
    assert found.gmacs == aim.count_flops(model).gmacs
    assert found.training.seconds > 0 < found.inference.seconds
    assert (found.training.peak is not None) == sys.platform.startswith("linux")
    assert passes[-1] == (6, 6)
    assert json.loads(json.dumps(found.to_dict()))["attention"][0]["implementation"] == "eager"
    assert max(map(len, found.to_text(60).splitlines())) <= 60


def test_precision_is_that_of_autocast() -> None:
    assert profile_model(trained(), precision="bf16", repeats=1).precision == "bf16"


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"precision": "int8"}, {"repeats": 0}])
def test_wrong_arguments_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        profile_model(trained(), **wrong)  # type: ignore[arg-type]


def test_an_image_model_is_refused() -> None:
    with pytest.raises(StateError):
        profile_model(base())
