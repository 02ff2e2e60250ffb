"""Hold the page about recipes to the recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aim_adapters.recipes import Recipe, get_recipe, list_recipes

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
NAMES = [row.name for row in list_recipes()]


def line(recipe: Recipe) -> str:
    """Return the line of the page's table for a recipe."""
    row = next(row for row in list_recipes() if row.name == recipe.name)
    rates = " / ".join(
        f"{rate:.0e}".replace("e-0", "e-") for rate in (recipe.learning_rate, recipe.head_learning_rate) if rate
    )
    cells = [
        f"`{row.name}`", row.clip.replace("x", "×"), row.views.replace("x", "×"),
        str(recipe.epochs), rates, "–" if row.paper is None else str(row.paper),
        "–" if row.users is None else row.users.replace("-", "–"),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_has_its_line(name: str) -> None:
    recipe = get_recipe(name)
    assert line(recipe) in PAGE.splitlines()
    assert recipe.batch_size == 64 or f"`{name}`: {recipe.batch_size}" in PAGE


@pytest.mark.parametrize("name", NAMES)
def test_its_name_says_the_image_model(name: str) -> None:
    row = next(row for row in list_recipes() if row.name == name)
    said = [
        model
        for part, model in re.findall(r"^\| `([\w-]+)` \| ([^|]+) \| `\w+\.\w+` \|$", PAGE, re.MULTILINE)
        if part in name
    ]
    assert said == ([] if name == "small-data" else [row.backbone])


def test_no_line_is_of_another_recipe() -> None:
    assert sum(text.startswith("| `") and text.count("|") == 8 for text in PAGE.splitlines()) == len(NAMES)
