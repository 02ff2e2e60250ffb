"""Variants are those that a model has, and a comparison has a row for each."""

from __future__ import annotations

import pytest
import torch

import aim_adapters as aim
from aim_adapters.analysis import compare_variants, variants_of
from aim_adapters.errors import ConfigError, InputError, StateError
from tests.tiny import base, trained, video


@pytest.mark.parametrize(
    ("components", "names"),
    [
        (("temporal", "spatial", "joint"), ["Frozen", "+ spatial", "+ temporal", "AIM"]),
        (("temporal", "spatial"), ["Frozen", "+ spatial", "AIM"]),
        (("spatial", "joint"), ["Frozen", "+ spatial", "AIM"]),
        (("temporal",), ["Frozen", "AIM"]),
        ((), ["Frozen"]),
    ],
)
def test_variants_are_those_that_differ(components: tuple[str, ...], names: list[str]) -> None:
    model = trained(components=components, num_classes=5)
    found = variants_of(model)
    assert list(found) == names
    for running in found.values():
        aim.attention_maps(model, video(1), components=running)


def test_a_comparison_has_a_row_for_each_variant_and_leaves_the_model_alone() -> None:
    model = trained().train()
    frames = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    heights = {compare_variants(model, video(1), frames, height=32, rollout=each).height for each in (False, True)}
    assert len(heights) == 1
    assert model.training
    assert compare_variants(trained(components=("temporal",)), video(1), frames, height=32).height < heights.pop()
    with pytest.raises(InputError, match="one clip, got 2"):
        compare_variants(model, video(2), frames)
    with pytest.raises(InputError, match="got 3 for 4 maps"):
        compare_variants(model, video(1), frames[:3])
    with pytest.raises(ConfigError, match="block"):
        compare_variants(model, video(1), frames, block=9)
    with pytest.raises(StateError, match="not wrapped"):
        compare_variants(base(), video(1), frames)
