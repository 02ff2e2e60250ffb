"""How training clips are augmented: data that `aim_adapters.video.ClipTransform` carries out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aim_adapters.arguments import read_items, require_integer, require_number, require_numbers, shown
from aim_adapters.errors import ConfigError

# RandAugment's magnitudes: 0 to 30 (Cubuk et al., 2020).
_MAGNITUDES = 31


@dataclass(frozen=True)
class Augmentation:
    """What happens at random to a training clip: once for the clip, the same in all of its frames.

    Args:
        scale: Least and greatest area of the crop, as a share of the frame.
        ratio: Least and greatest aspect ratio of the crop (width / height), relative to that of the model's images.
        flip: Probability of a horizontal flip.
        color: Standard deviation of color noise along the principal components of ImageNet's colors (AlexNet); 0.1 is
            usual, 0 none.
        rand_augment: Number of operations and their magnitude, 0 to 30 (RandAugment); None: no operations.
        erasing: Probability that a box is erased: filled with gray.
        swapped_labels: Where direction is part of a class: the class that a flip makes of each such class, both ways,
            or None if its clips must not be flipped; `aim_adapters.video.mirrored_classes` returns it.

    Raises:
        ConfigError: A field has a value that it cannot have.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    color: float = 0.0
    rand_augment: tuple[int, int] | None = None
    erasing: float = 0.0
    swapped_labels: Mapping[int, int | None] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Normalize and validate every field."""
        put = object.__setattr__  # the dataclass is frozen; this is its constructor
        for name in ("scale", "ratio"):
            put(self, name, _range(name, getattr(self, name)))
        if self.scale[1] > 1:
            raise ConfigError(f"scale must be shares of the frame's area, at most 1, got {shown(self.scale)}")
        for name in ("flip", "erasing"):
            put(self, name, _probability(name, getattr(self, name)))
        put(self, "color", require_number("color", self.color, low=0.0))
        if self.rand_augment is not None:
            put(self, "rand_augment", _rand_augment(self.rand_augment))
        put(self, "swapped_labels", _swapped_labels(self.swapped_labels))


def _range(name: str, value: object) -> tuple[float, float]:
    expected = "a least and a greatest value > 0"
    low, high = require_numbers(name, value, count=2, expected=expected, low=0.0, open_low=True)
    if low > high:
        raise ConfigError(f"{name} must be {expected}, got {shown(value)}")
    return low, high


def _probability(name: str, value: object) -> float:
    number = require_number(name, value, low=0.0)
    if number > 1:
        raise ConfigError(f"{name} must be a probability, from 0 to 1, got {shown(value)}")
    return number


def _rand_augment(value: object) -> tuple[int, int]:
    refusal = "rand_augment must be a number of operations and a magnitude, such as (4, 7), or None"
    items = read_items(value, refusal)
    if len(items) != 2:
        raise ConfigError(f"{refusal}, got {shown(value)}")
    count = require_integer("the number of operations in rand_augment", items[0], low=1, high=100)
    return count, require_integer("the magnitude in rand_augment", items[1], low=0, high=_MAGNITUDES - 1)


def _swapped_labels(value: object) -> dict[int, int | None]:
    refusal = "swapped_labels must map classes to classes, both ways, such as {3: 4, 4: 3}"
    # JSON has no integers as keys: there they are pairs.
    pairs = list(value.items()) if isinstance(value, Mapping) else read_items(value, refusal)
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise ConfigError(f"{refusal}, got {shown(value)}")
    swapped = {_class(one): None if other is None else _class(other) for one, other in pairs}
    if any(other is not None and swapped.get(other) != one for one, other in swapped.items()):
        raise ConfigError(f"{refusal}, got {shown(value)}")
    return swapped


def _class(value: object) -> int:
    return require_integer("swapped_labels: each class", value, low=0)
