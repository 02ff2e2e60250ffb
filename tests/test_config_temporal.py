"""By what a model sees time: settings of a convolution are refused where they mean nothing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from aim_adapters.config import AIMConfig
from aim_adapters.errors import ConfigError


def test_input_adapter_needs_the_temporal_component() -> None:
    with pytest.raises(ConfigError, match=r"temporal_input_adapter=True needs the temporal.*\('spatial',\).*add"):
        AIMConfig(8, components=("spatial",), temporal_input_adapter=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temporal": "convolution"}, r"temporal must be one of 'attention', 'conv', 'both', got 'convolution'"),
        ({"temporal": None}, "temporal must be one of 'attention', 'conv', 'both', got None"),
        ({"temporal": "conv", "conv_kernel": 4}, r"conv_kernel must be odd.*got 4"),
        ({"temporal": "conv", "conv_kernel": 1}, "conv_kernel must be an integer >= 3, got 1"),
        ({"temporal": "conv", "conv_kernel": -3}, "conv_kernel must be an integer >= 3, got -3"),
        ({"temporal": "conv", "conv_kernel": 3.5}, "conv_kernel must be an integer.*got 3.5"),
        ({"temporal": "conv", "conv_kernel": None}, "conv_kernel must be an integer.*got None"),
        ({"temporal": "conv", "conv_layers": "half"}, "conv_layers: expected 'all'.*got 'half'"),
        ({"temporal": "conv", "conv_layers": ()}, r"conv_layers: expected 'all'.*got \(\)"),
        ({"temporal": "both", "conv_layers": [True]}, "conv_layers: expected 'all'.*got"),
        ({"conv_kernel": 5}, "conv_kernel and conv_layers describe a convolution.*temporal='conv'.*got 5 and None"),
        ({"conv_layers": "all"}, "conv_kernel and conv_layers describe a convolution.*got 3 and 'all'"),
        ({"temporal": "conv", "components": ("spatial",)}, r"temporal='conv' needs the temporal.*\('spatial',\)"),
        ({"temporal": "both", "components": ()}, r"temporal='both' needs the temporal component, got components=\(\)"),
        ({"temporal": "conv", "temporal_input_adapter": True}, "temporal_input_adapter=True adds.*'conv' has none"),
    ],
)
def test_settings_of_a_convolution_that_mean_nothing_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        AIMConfig(8, **settings)


def test_what_was_saved_before_there_was_a_convolution_attends() -> None:
    fields = {
        name: value for name, value in AIMConfig(8).to_dict().items() if not name.startswith(("temporal", "conv"))
    }
    assert AIMConfig.from_dict(fields) == AIMConfig(8, temporal="attention")


@pytest.mark.parametrize(
    ("settings", "expected", "attends"),
    [
        ({}, (), True),
        ({"temporal": "conv"}, (0, 1, 2, 3), False),
        ({"temporal": "both", "layers": "top_half"}, (2, 3), True),
        ({"temporal": "both", "layers": "top_half", "conv_layers": "bottom_half"}, (0, 1), True),
        ({"temporal": "conv", "conv_layers": np.array([-1, 0])}, (0, 3), False),
        ({"components": ("joint",)}, (), False),
    ],
)
def test_blocks_with_a_convolution(settings: dict[str, Any], expected: tuple[int, ...], attends: bool) -> None:
    config = AIMConfig(8, **settings)
    assert (config.conv_blocks(4), config.attends_over_frames) == (expected, attends)
    json.dumps(config.to_dict())


def test_blocks_that_the_convolution_does_not_find_are_named() -> None:
    with pytest.raises(ConfigError, match="conv_layers names block 4, but the model has 4 blocks"):
        AIMConfig(8, temporal="conv", conv_layers=(4,)).conv_blocks(4)
    with pytest.raises(ConfigError, match="conv_layers names a block twice"):
        AIMConfig(8, temporal="both", conv_layers=(0, -4)).conv_blocks(4)
