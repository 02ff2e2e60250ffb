"""Cover every pair of values of any two arguments by few combinations, where the full product would take too long."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def pairwise(*arguments: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return combinations of one value for each argument, such that any two values of two arguments meet in one.

    Greedy, and the same each time: a combination starts from the first pair that did not meet yet, and each other value
    is the one that makes most pairs meet.

    Args:
        *arguments: The values of each argument.
    """
    if len(arguments) < 2:
        return [(value,) for values in arguments for value in values]
    sizes = [range(len(values)) for values in arguments]
    apart = {
        ((i, a), (j, b)): None  # in order, as a set is not
        for i, j in combinations(range(len(arguments)), 2)
        for a, b in product(sizes[i], sizes[j])
    }
    found = []
    while apart:
        chosen = dict(next(iter(apart)))
        for i in range(len(arguments)):
            if i not in chosen:
                chosen[i] = max(sizes[i], key=lambda a: sum(_pair((i, a), each) in apart for each in chosen.items()))
        for pair in combinations(sorted(chosen.items()), 2):
            apart.pop(pair, None)
        found.append(tuple(values[chosen[i]] for i, values in enumerate(arguments)))
    return found


def _pair(one: tuple[int, int], other: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    return (one, other) if one < other else (other, one)
