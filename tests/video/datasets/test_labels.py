"""Names of classes: which are mirrored."""

from __future__ import annotations

import pytest

from aim_adapters.errors import ConfigError
from aim_adapters.video import mirrored_classes


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Pushing something from left to right", "Pushing something from right to left"),
        ("swipe_left", "swipe_right"),
        ("Swiping Left", "swiping right"),
        ("leftward pan", "rightward pan"),
        ("Turning Hand Clockwise", "Turning Hand Counterclockwise"),
        ("spin anti-clockwise", "spin clockwise"),
    ],
)
def test_directions_are_found_by_name(one: str, other: str) -> None:
    assert mirrored_classes(["sit", one, "upright", other]) == {1: 3, 3: 1}


def test_a_direction_without_its_mirror_is_told() -> None:
    assert mirrored_classes(["turn left", "standing upright", "bright", "leftover"]) == {0: None}
    assert mirrored_classes(["Left", "left", "right"]) == {0: None, 1: 2, 2: 1}
    with pytest.raises(ConfigError, match="labels"):
        mirrored_classes("left")
