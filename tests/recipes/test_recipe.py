"""Recipes are valid data: they survive JSON, scale with the batch, and say which model they do not fit."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

import aim_adapters as aim
from aim_adapters.anatomy import BackboneAnatomy
from aim_adapters.backbones import read_anatomy
from aim_adapters.core import only_root
from aim_adapters.recipes import Augmentation, ExpectedModel, Recipe, get_recipe, list_recipes
from tests.tiny import base

TINY = Recipe("tiny", "a test", "tiny", epochs=10, learning_rate=1e-3, batch_size=8, expected=(3, 32, 8), frames=4)
ALL = [row.name for row in list_recipes()]


def anatomy() -> BackboneAnatomy:
    return read_anatomy(base())


@pytest.mark.parametrize("name", ALL)
def test_recipes_survive_json(name: str) -> None:
    recipe = get_recipe(name)
    assert Recipe.from_json(recipe.to_json()) == recipe
    changed = dataclasses.replace(recipe, augmentation=Augmentation(swapped_labels={1: 2, 2: 1}))
    assert Recipe.from_json(changed.to_json()) == changed != recipe


def test_learning_rates_scale_with_the_batch() -> None:
    recipe = get_recipe("k400-clip-vit-l14-8f").for_batch(16)
    assert (recipe.batch_size, recipe.learning_rate, recipe.head_learning_rate) == (16, 7.5e-6, 7.5e-5)
    assert get_recipe("k400-clip-vit-b16-8f").for_batch(128).learning_rate == 6e-4
    assert recipe.for_batch(64) == get_recipe("k400-clip-vit-l14-8f")


def test_warm_up_keeps_its_share_of_the_epochs() -> None:
    recipe = get_recipe("k400-clip-vit-b16-8f").for_epochs(10)
    assert (recipe.epochs, recipe.warmup_epochs) == (10, 1.0)


def test_settings_of_a_recipe_wrap_a_model_that_it_fits() -> None:
    config = only_root(aim.wrap_image_model(base(), **TINY.wrap_settings())).state.config
    assert TINY.check_fits(config, anatomy()) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"expected": (12, 32, 8)}, "3 blocks of width 32"),
        ({"expected": (3, 64, 8)}, "width 64"),
        ({"expected": (3, 32, 16)}, "patches of 16"),
        ({"frames": 8}, "num_frames=8"),
        ({"scale": 1.0}, "scale=1.0"),
        ({"tubelet_size": 2}, "tubelet_size=2"),
        ({"temporal_input_adapter": True}, "temporal_input_adapter=True"),
        ({"adapter_activation": "none"}, "adapter_activation=none"),
    ],
)
def test_what_does_not_fit_is_said(changes: dict[str, Any], named: str) -> None:
    recipe = dataclasses.replace(TINY, **changes)
    (words,) = recipe.check_fits(aim.AIMConfig(**TINY.wrap_settings()), anatomy())
    assert named in words


def test_small_data_fits_any_model() -> None:
    config = aim.AIMConfig(6, scale=1.0, tubelet_size=2, temporal_input_adapter=True)
    assert get_recipe("small-data").check_fits(config, anatomy()) == []
    assert dataclasses.replace(TINY, expected=None, frames=6).check_fits(config, anatomy()) == []


def test_a_recipe_fits_the_rungs_of_table_1() -> None:
    recipe = dataclasses.replace(TINY, temporal_input_adapter=True, scale=1.0)
    assert recipe.check_fits(aim.AIMConfig(4, components=("spatial",)), anatomy()) == []
    assert len(recipe.check_fits(aim.AIMConfig(4), anatomy())) == 2


def test_settings_of_the_reference_are_a_variant() -> None:
    paper, reference = get_recipe("ssv2-clip-vit-b16-8f"), get_recipe("ssv2-clip-vit-b16-8f-reference")
    assert (paper.scale, paper.warmup_epochs, paper.warmup_start) == (0.5, 3.0, 0.0)
    assert (reference.scale, reference.warmup_epochs, reference.warmup_start) == (1.0, 2.5, 0.1)
    assert dataclasses.replace(reference, scale=0.5, warmup_epochs=3, warmup_start=0, name=paper.name, reference={
        "warmup_epochs": 2.5, "warmup_start": 0.1, "scale": 1.0,
    }) == paper  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"name": 3}, {"epochs": 0}, {"epochs": None}, {"epochs": 2}, {"batch_size": 1.5}, {"learning_rate": 0},
        {"learning_rate": float("nan")}, {"head_learning_rate": -1}, {"frames": 0}, {"stride": 0}, {"scale": None},
        {"drop_path": 1.0}, {"head_dropout": 2}, {"temporal_input_adapter": "no"}, {"tubelet_size": 3},
        {"warmup_epochs": -1}, {"weight_decay": -1}, {"label_smoothing": 1}, {"augmentation": {}}, {"views": "3"},
        {"views": "0x1"}, {"views": "3x1x1"}, {"paper_top1": "x"}, {"users_top1": (1,)}, {"reference": {"rate": 1}},
        {"adapter_activation": "relu"},
        {"expected": (12, 768)}, {"expected": 12},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(aim.ConfigError, match=next(iter(changes)).partition("_")[0]):
        dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "3", json.dumps({**TINY.to_dict(), "lr": 1}), '{"name": "x"}',
             json.dumps({**TINY.to_dict(), "augmentation": {"flop": 1}})],
)  # fmt: skip
def test_wrong_json_is_refused(text: str) -> None:
    with pytest.raises(aim.ConfigError):
        Recipe.from_json(text)


def test_expected_models_are_named() -> None:
    assert TINY.expected == ExpectedModel(depth=3, width=32, patch_size=8)
