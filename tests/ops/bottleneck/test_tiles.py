"""Tiles hold the adapter, and fit."""

from __future__ import annotations

import pytest

from aim_adapters.ops.bottleneck import tiles

HOPPER, AMPERE, CONSUMER = 227 * 1024, 163 * 1024, 99 * 1024


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("width", [8, 24, 96, 192, 256, 264, 320, 512, 520, 1024])
@pytest.mark.parametrize("shared_memory", [HOPPER, AMPERE, CONSUMER])
def test_tiles_hold_the_adapter(width: int, itemsize: int, shared_memory: int) -> None:
    up, down = (choose(width, itemsize, shared_memory) for choose in (tiles.up_add, tiles.down_backward))
    assert down is not None and width <= down.units * down.pieces * tiles.parts(width)
    assert down.units * down.pieces <= 256
    if up is None:
        assert tiles.unfit(width, itemsize, shared_memory) is not None
        return
    assert tiles.unfit(width, itemsize, shared_memory) is None
    assert width <= up.units * up.pieces < width + up.units
    for tile in (up, down):
        assert 1 <= tile.pieces <= 4 and 16 <= tile.rows <= 128
        assert tile.units & (tile.units - 1) == 0 and tile.units >= 16


def test_less_shared_memory_makes_smaller_tiles() -> None:
    for choose in (tiles.up_add, tiles.down_backward):
        rows = [choose(256, 2, memory).rows for memory in (HOPPER, CONSUMER)]  # type: ignore[union-attr]
        assert rows[0] == 128 > rows[1]


@pytest.mark.parametrize(
    ("width", "memory", "fits"),
    [(1024, HOPPER, True), (1032, HOPPER, False), (192, 16 * 1024, False), (8, 16 * 1024, True)],
)
def test_what_does_not_fit_is_said(width: int, memory: int, fits: bool) -> None:
    why = tiles.unfit(width, 2, memory)
    assert (why is None) == fits
    assert fits or f"{width} wide" in str(why)
