"""Every published row has a recipe under its own name, and a name that is nearly right leads to it."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

import aim_adapters as aim
from aim_adapters.backbones import read_anatomy
from aim_adapters.recipes import Augmentation, Recipe, get_recipe

# The facts page: accuracy, frames x stride, views, epochs, learning rates, input adapter.
PUBLISHED: list[tuple[str, Any]] = [
    ("k400-clip-vit-b16-8f", (83.9, 8, 16, "3x1", 30, 3e-4, None, False)),
    ("k400-clip-vit-b16-16f", (84.5, 16, 8, "3x1", 30, 3e-4, None, False)),
    ("k400-clip-vit-b16-32f", (84.7, 32, 4, "3x1", 30, 3e-4, None, False)),
    ("k400-clip-vit-l14-8f", (86.8, 8, 16, "3x1", 30, 3e-5, 3e-4, False)),
    ("k400-clip-vit-l14-16f", (87.3, 16, 8, "3x1", 30, 3e-5, 3e-4, False)),
    ("k400-clip-vit-l14-32f", (87.5, 32, 4, "3x1", 30, 3e-5, 3e-4, False)),
    ("k400-in21k-vit-b16-8f", (78.8, 8, 16, "3x1", 30, 3e-4, None, False)),
    ("k400-swin-b-32f", (82.1, 32, 2, "4x3", 30, 1e-4, 1e-3, False)),
    ("k700-clip-vit-b16-32f", (76.9, 32, 4, "3x3", 30, 3e-4, None, False)),
    ("k700-clip-vit-l14-32f", (80.4, 32, 4, "3x3", 30, 3e-5, 3e-4, False)),
    ("ssv2-clip-vit-b16-8f", (66.4, 8, None, "1x3", 50, 3e-4, None, True)),
    ("ssv2-clip-vit-b16-16f", (68.1, 16, None, "1x3", 50, 3e-4, None, True)),
    ("ssv2-clip-vit-b16-32f", (69.1, 32, None, "1x3", 50, 3e-4, None, True)),
    ("ssv2-clip-vit-l14-8f", (67.6, 8, None, "1x3", 50, 3e-5, 3e-4, True)),
    ("ssv2-clip-vit-l14-16f", (69.4, 16, None, "1x3", 50, 3e-5, 3e-4, True)),
    ("ssv2-clip-vit-l14-32f", (70.6, 32, None, "1x3", 50, 3e-5, 3e-4, True)),
    ("ssv2-in21k-vit-b16-8f", (62.0, 8, None, "1x3", 50, 3e-4, None, True)),
    ("ssv2-swin-b-32f", (None, 32, None, "1x3", 60, 3e-5, 3e-4, False)),
    ("diving48-clip-vit-b16-32f", (88.9, 32, None, "1x1", 50, 3e-4, None, False)),
    ("diving48-clip-vit-l14-32f", (90.6, 32, None, "1x1", 50, 3e-4, None, False)),
]


@pytest.mark.parametrize(("name", "facts"), PUBLISHED)
def test_published_rows_have_recipes(name: str, facts: tuple[Any, ...]) -> None:
    r = get_recipe(name)
    assert facts == (
        r.paper_top1, r.frames, r.stride, r.views, r.epochs, r.learning_rate, r.head_learning_rate,
        r.temporal_input_adapter,
    )  # fmt: skip
    assert (
        r.augmentation
        == {
            "k": Augmentation(color=0.1 if "clip-vit-l14" in name else 0.0),
            "s": Augmentation(flip=0.0, rand_augment=(4, 7), erasing=0.25),
            "d": Augmentation(),
        }[name[0]]
    )
    assert r.label_smoothing == (0.1 if name.startswith("ssv2") else 0.0)
    assert (r.weight_decay, r.head_dropout) == (0.05, 0.5)
    assert r.batch_size == {"k400-swin-b-32f": 128, "ssv2-swin-b-32f": 256}.get(name, 64)


def test_table_is_the_recipes() -> None:
    table = aim.list_recipes()
    assert {name for name, _ in PUBLISHED} | {"small-data"} <= {row.name for row in table}
    assert all(row.paper == get_recipe(row.name).paper_top1 for row in table)
    lines = str(table).splitlines()
    assert len(lines) == len(table) + 1 and all(len(line) <= 120 for line in lines)
    assert "k400-clip-vit-l14-32f" in (line := lines[7]) and "87.5" in line and "86.2-87.3" in line


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("k400-vit-b16", "k400-clip-vit-b16-8f"), ("K400-CLIP-ViT-B16-8f", "k400-clip-vit-b16-8f"),
        ("small_data", "small-data"), ("x", "expected one of small-data"), ("small-data-reference", "small-data"),
        ("-reference", "small-data"), ("", "small-data"),
    ],
)  # fmt: skip
def test_wrong_names_lead_to_right_ones(wrong: str, near: str) -> None:
    with pytest.raises(aim.ConfigError, match=f"no recipe '{wrong}'.*{near}"):
        get_recipe(wrong)


def test_a_recipe_is_returned_as_it_is() -> None:
    mine = Recipe("mine", "mine", "any", epochs=3, learning_rate=1, batch_size=1)
    assert get_recipe(mine) is mine
    with pytest.raises(aim.ConfigError, match="the name of a recipe"):
        get_recipe(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("library", "model", "recipe"),
    [
        ("timm", "vit_base_patch16_clip_quickgelu_224.openai", "k400-clip-vit-b16-8f"),
        ("timm", "vit_large_patch14_clip_quickgelu_224.openai", "ssv2-clip-vit-l14-16f"),
        ("timm", "vit_base_patch16_224.augreg_in21k", "ssv2-in21k-vit-b16-8f"),
        ("timm", "swin_base_patch4_window7_224.ms_in22k", "ssv2-swin-b-32f"),
    ],
)
def test_recipes_fit_the_models_that_they_name(library: str, model: str, recipe: str) -> None:
    with torch.device("meta"):
        anatomy = read_anatomy(timm.create_model(model))
    config = aim.AIMConfig(**get_recipe(recipe).wrap_settings())
    assert get_recipe(recipe).check_fits(config, anatomy) == []
    assert len(get_recipe("k400-clip-vit-b16-8f" if "b16-8f" not in recipe else "k400-swin-b-32f").check_fits(
        config, anatomy)) >= 1  # fmt: skip
