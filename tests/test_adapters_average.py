"""Adapters of the same settings are averaged into another; others are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import aim_adapters as aim
from aim_adapters.errors import ConfigError
from tests.backbones.cases import assert_same, snapshot
from tests.several import alone, several
from tests.tiny import FRAMES, run


def test_average_is_the_weighted_mean() -> None:
    model = several()
    aim.average_adapters(model, ["default", "same"], into="mean")
    aim.average_adapters(model, ["default", "same"], into="soup", weights=[3, 1])
    default, same, mean, soup = (
        aim.adapter_state_dict(model, name=name) for name in ("default", "same", "mean", "soup")
    )
    for key in default:
        torch.testing.assert_close(mean[key], (default[key] + same[key]) / 2)
        torch.testing.assert_close(soup[key], 0.75 * default[key] + 0.25 * same[key])
    assert torch.equal(run(model), run(alone("default")))
    aim.set_adapter(model, "mean")
    assert all(p.requires_grad for p in aim.trainable_parameters(model))


@pytest.mark.parametrize("weights", [[1e308, 1e308], torch.tensor([0.5, 0.5]), (np.float16(2), 2)])
def test_weights_of_any_kind_and_size_are_shares(weights: Any) -> None:
    model = several()
    aim.average_adapters(model, ["default", "same"], into="mean")
    aim.average_adapters(model, ["default", "same"], into="weighted", weights=weights)
    mean, weighted = (aim.adapter_state_dict(model, name=name) for name in ("mean", "weighted"))
    assert all(torch.equal(mean[key], weighted[key]) for key in mean)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["default", "other"], {}, "'other' differs from 'default' in its settings"),
        (["default"], {}, "takes two names or more, got"),
        ("default", {}, "takes two names or more, got 'default'"),
        (2, {}, "takes two names or more, got 2"),
        (["default", None], {}, "takes two names or more, got"),
        (["default", "absent"], {}, "no adapter is named 'absent'; this model has 'default', 'same', 'other'"),
        (["default", "same"], {"weights": [1]}, "weights must be 2 finite numbers >= 0"),
        (["default", "same"], {"weights": [0, 0]}, "weights must be 2 finite numbers >= 0"),
        (["default", "same"], {"weights": [2, -1]}, "weights must be 2 finite numbers >= 0"),
        (["default", "same"], {"weights": [float("nan"), 1]}, "weights must be 2 finite numbers >= 0"),
        (["default", "same"], {"weights": ["half", 1]}, "weights must be 2 finite numbers >= 0"),
        (["default", "same"], {"weights": [10**400, 1]}, "weights must be 2 finite numbers >= 0"),
        (["default", "same"], {"weights": 0.5}, "weights must be 2 finite numbers >= 0"),
        (["default", "same"], {"into": "same"}, "an adapter is named 'same' already"),
    ],
)
def test_what_cannot_be_averaged_is_refused(names: Any, options: dict[str, Any], message: str) -> None:
    model = several()
    before = snapshot(model)
    with pytest.raises(ConfigError, match=message):
        aim.average_adapters(model, names, **{"into": "mean", **options})
    assert_same(before, snapshot(model))


def test_adapters_of_another_scale_are_not_averaged() -> None:
    model = several()
    aim.add_adapter(model, "scaled", aim.AIMConfig(num_frames=FRAMES, scale=1.0))
    with pytest.raises(ConfigError, match="'scaled' differs from 'default'"):
        aim.average_adapters(model, ["default", "scaled"], into="mean")
