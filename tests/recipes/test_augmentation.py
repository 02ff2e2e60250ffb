"""Settings of an augmentation are checked when they are written down, not when a worker uses them."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import aim_adapters as aim
from aim_adapters.recipes import Augmentation


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale", 0.5), ("scale", (0.0, 1.0)), ("scale", (0.5, 0.1)), ("scale", (0.5, 1.1)), ("scale", ("a", "b")),
        ("ratio", (1.0,)), ("ratio", (-1, 1)), ("ratio", None), ("flip", 1.5), ("flip", -0.1), ("flip", True),
        ("flip", float("nan")), ("color", -1), ("color", "x"), ("erasing", 2), ("erasing", None),
        ("rand_augment", 4), ("rand_augment", (4, 31)), ("rand_augment", (0, 7)), ("rand_augment", (4, 7, 1)),
        ("rand_augment", (4.5, 7)), ("swapped_labels", {1: 2}), ("swapped_labels", {1: 2, 2: 3, 3: 1}),
        ("swapped_labels", {-1: 1, 1: -1}), ("swapped_labels", {"left": "right"}), ("swapped_labels", {None: None}),
        ("swapped_labels", [(1, 2, 3)]), ("swapped_labels", 3), ("swapped_labels", None),
    ],
)  # fmt: skip
def test_wrong_fields_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(aim.ConfigError, match=field):
        Augmentation(**{field: value})


def test_fields_become_plain_python() -> None:
    swapped: Any = [(1, np.int64(2)), (2, 1), (5, None)]
    scale: Any = [np.float32(0.5), 1]
    ours = Augmentation(scale, flip=1, rand_augment=np.array([4, 7]), swapped_labels=swapped)  # type: ignore[arg-type]
    assert (ours.scale, ours.flip, ours.rand_augment) == ((0.5, 1.0), 1.0, (4, 7))
    assert ours.swapped_labels == {1: 2, 2: 1, 5: None} and type(ours.swapped_labels[1]) is int
    assert pickle.loads(pickle.dumps(ours)) == ours and hash(ours) == hash(pickle.loads(pickle.dumps(ours)))
