"""The table of tiles covers every size, and what it names can be launched."""

from __future__ import annotations

import pytest

from aim_adapters.ops.spatial_attention.tiles import (
    MAX_RESIDENT_TOKENS,
    MAX_WINDOW_TOKENS,
    Tiles,
    alternatives,
    pieces,
    remainder,
    shared_memory,
    tiles_for,
)

AMPERE, HOPPER = 99 * 1024, 227 * 1024


@pytest.mark.parametrize("largest", [64, 128])
def test_pieces_cover_a_sequence_with_little_more(largest: int) -> None:
    for tokens in range(1, MAX_RESIDENT_TOKENS + 1):
        sizes = pieces(tokens, largest)
        used = [size for size in sizes if size]
        assert tuple(used) == sizes[: len(used)]
        assert all(size & (size - 1) == 0 and 16 <= size <= largest for size in used)
        assert tokens <= sum(used) <= max(16, tokens + 15)
        assert sum(used[:-1]) < tokens  # every piece holds a token


@pytest.mark.parametrize(
    ("tokens", "largest", "expected"),
    [
        (197, 128, (128, 64, 16, 0, 0)),
        (197, 64, (64, 64, 64, 16, 0)),
        (257, 128, (128, 128, 16, 0, 0)),
        (65, 64, (64, 16, 0, 0, 0)),
        (248, 128, (128, 128, 0, 0, 0)),
    ],
)
def test_pieces(tokens: int, largest: int, expected: tuple[int, ...]) -> None:
    assert pieces(tokens, largest) == expected


def test_rest_holds_what_whole_blocks_leave() -> None:
    assert [remainder(tokens, 64) for tokens in (128, 129, 145, 161, 191)] == [0, 16, 32, 64, 64]


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dim", [8, 24, 32, 64, 80, 128])
def test_something_fits_every_size_on_every_device(dim: int, backward: bool, added: bool) -> None:
    window, resident = MAX_WINDOW_TOKENS, MAX_RESIDENT_TOKENS
    for tokens in (1, 16, 17, 49, window, window + 1, 197, resident, resident + 1, 1025):
        for shared in (AMPERE, HOPPER):
            found = tiles_for(tokens, dim, added=added, backward=backward, shared=shared)
            assert found is not None
            assert shared_memory(found, tokens, dim, added=added) <= shared
            assert (found.kind == "window") == (tokens <= window)
            assert found.kind != "window" or found.rows >= tokens
            assert found.kind != "resident" or (tokens <= resident and dim <= 64)
    assert tiles_for(197, dim, added=added, backward=backward, shared=1024) is None


@pytest.mark.parametrize(
    ("gpu", "tokens", "added", "expected"),
    [
        ("H200", 257, False, ("resident", 2)),
        ("A100", 197, False, ("resident", 2)),
        ("A100", 257, False, ("resident", 1)),
        ("Ada", 197, False, ("streaming", 2)),
        ("Ada", 192, True, ("streaming", 1)),
    ],
)
def test_what_smaller_gpus_take(gpu: str, tokens: int, added: bool, expected: tuple[str, int]) -> None:
    shared = {"H200": HOPPER, "A100": 166_912, "Ada": 101_376}[gpu]
    found = tiles_for(tokens, 64, added=added, backward=True, shared=shared)
    assert found is not None and (found.kind, found.stages) == expected


def test_first_that_fits_is_taken() -> None:
    first, *others = alternatives(197, 64, added=False, backward=True)
    assert first == Tiles("resident", 64, 128, 4, 2)
    assert tiles_for(197, 64, added=False, backward=True, shared=HOPPER) == first
    least = min(shared_memory(each, 197, 64, added=False) for each in (first, *others))
    found = tiles_for(197, 64, added=False, backward=True, shared=least)
    assert found is not None and shared_memory(found, 197, 64, added=False) == least
