"""A recipe of our own, for a few hundred clips."""

from __future__ import annotations

from aim_adapters.recipes.augmentation import Augmentation
from aim_adapters.recipes.recipe import Recipe

SMALL_DATA = Recipe(
    name="small-data",
    dataset="a few hundred clips",
    backbone="any",
    epochs=30,
    learning_rate=3e-4,
    batch_size=8,
    augmentation=Augmentation(scale=(0.5, 1.0)),
    views="1x1",
)
