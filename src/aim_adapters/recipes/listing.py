"""Recipes by name."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from aim_adapters.arguments import require_string, shown
from aim_adapters.errors import ConfigError
from aim_adapters.recipes.published import PUBLISHED
from aim_adapters.recipes.recipe import Recipe
from aim_adapters.recipes.small_data import SMALL_DATA
from aim_adapters.table import Table

_RECIPES = {recipe.name: recipe for recipe in (SMALL_DATA, *PUBLISHED)}
_REFERENCE = "-reference"


class RecipeRow(NamedTuple):
    """One recipe in the table of `list_recipes`.

    Attributes:
        name: Name by which `get_recipe` finds it.
        dataset: What it was made for.
        backbone: The image model that it was made for.
        clip: Frames x stride, or frames of equal segments ("uniform").
        views: Clips in time x crops in space in testing.
        paper: Top-1 accuracy in the paper, in percent, or None.
        users: What users of the reference measured with its released files: the least and the greatest, or None.
    """

    name: str
    dataset: str
    backbone: str
    clip: str
    views: str
    paper: float | None
    users: str | None


def list_recipes() -> Table[RecipeRow]:
    """Return all recipes, beside the accuracy that the paper states for them."""
    return Table(_row(recipe) for recipe in _RECIPES.values())


def get_recipe(name: str | Recipe) -> Recipe:
    """Return a recipe by its name.

    Args:
        name: A name in `list_recipes`. With ``"-reference"`` behind it, the settings are those of the reference's
            configuration where that differs from the paper. A recipe is returned as it is.

    Raises:
        ConfigError: There is no recipe of that name.
    """
    if isinstance(name, Recipe):
        return name
    name = require_string("recipe", name, expected="the name of a recipe, such as 'small-data', or a Recipe")
    recipe = _RECIPES.get(name.removesuffix(_REFERENCE))
    if recipe is None or (name.endswith(_REFERENCE) and not recipe.reference):
        near = difflib.get_close_matches(name.casefold(), _RECIPES, n=4, cutoff=0.5)
        hint = f"near it: {', '.join(near)}" if near else f"expected one of {', '.join(_RECIPES)}"
        raise ConfigError(f"no recipe {shown(name)}; {hint}; aim.list_recipes() shows all")
    return recipe.as_reference() if name.endswith(_REFERENCE) else recipe


def _row(recipe: Recipe) -> RecipeRow:
    frames = "any" if recipe.frames is None else str(recipe.frames)
    users = None if recipe.users_top1 is None else "-".join(map(str, dict.fromkeys(recipe.users_top1)))
    return RecipeRow(
        name=recipe.name,
        dataset=recipe.dataset,
        backbone=recipe.backbone,
        clip=f"{frames} uniform" if recipe.stride is None else f"{frames}x{recipe.stride}",
        views=recipe.views,
        paper=recipe.paper_top1,
        users=users,
    )
