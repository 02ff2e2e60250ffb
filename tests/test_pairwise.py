"""Grids of tests that are covered in pairs miss no pair, and are the same each time."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from tests.pairwise import pairwise

GRIDS: list[tuple[list[Any], ...]] = [
    ([1, 2], "ab"),
    ("abc", [True, False], [None]),
    ("abcdef", [0, 1], ["x", "y"], range(5)),
    tuple([0, 1, 2] for _ in range(6)),
    tuple([0, 1] for _ in range(12)),
    ("ab", "cde", "fghij", "klmnop", "q"),
    ([1, 1], "ab"),  # values that are equal are values all the same
]  # type: ignore[list-item]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(str(len(values)) for values in grid))
def test_any_two_values_of_two_arguments_meet(grid: tuple[list[Any], ...]) -> None:
    rows = pairwise(*grid)
    for i, j in combinations(range(len(grid)), 2):
        assert {(row[i], row[j]) for row in rows} == {(a, b) for a in grid[i] for b in grid[j]}
    assert all(len(row) == len(grid) for row in rows)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(str(len(values)) for values in grid))
def test_they_are_few_and_the_same_each_time(grid: tuple[list[Any], ...]) -> None:
    rows = pairwise(*grid)
    *_, second, first = sorted(map(len, grid))
    full = 1
    for values in grid:
        full *= len(values)
    assert first * second <= len(rows) <= min(full, 2 * first * second + len(grid))
    assert rows == pairwise(*grid)


def test_one_argument_and_none() -> None:
    assert pairwise("abc") == [("a",), ("b",), ("c",)]
    assert pairwise() == []
    assert pairwise("abc", []) == []
