"""The settings of published trainings, as data."""

from aim_adapters.recipes.augmentation import Augmentation

__all__ = ["Augmentation"]
