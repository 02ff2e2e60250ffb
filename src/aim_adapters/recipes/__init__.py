"""The settings of published trainings, and of one of our own, as data."""

from aim_adapters.recipes.augmentation import Augmentation
from aim_adapters.recipes.listing import RecipeRow, get_recipe, list_recipes
from aim_adapters.recipes.recipe import ExpectedModel, Recipe

__all__ = ["Augmentation", "ExpectedModel", "Recipe", "RecipeRow", "get_recipe", "list_recipes"]
