"""State how the kernels cut their matrices, without importing what compiles them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

MAX_WIDTH = 1024
_LEAST_ROWS = 16  # of a product on matrix units


class Tile(NamedTuple):
    """What a program works on.

    Args:
        rows: Tokens.
        columns: Of the model's width, at a time.
        units: Of the hidden layer, in one piece.
        pieces: Of the hidden layer, held at once.
        warps: Warps of a program.
        stages: Depth of the pipeline of loads.
    """

    rows: int
    columns: int
    units: int
    pieces: int
    warps: int
    stages: int


def up_add(width: int, itemsize: int, shared_memory: int) -> Tile | None:
    """Return the tile of `up_add`, which holds the whole hidden layer of some rows, or None if none fits.

    Args:
        width: W.
        itemsize: Bytes of an element of the hidden layer.
        shared_memory: Bytes that a program may use.
    """
    units = 256 if width > 512 else 128 if width > 256 else _units(width)
    columns = 16 if width > 512 else 32
    pieces = -(-width // units)

    def memory(rows: int) -> int:
        return (rows + 2 * columns) * units * pieces * itemsize + 4 * rows * columns

    rows = None if width > MAX_WIDTH else _rows(memory, itemsize, shared_memory)
    return None if rows is None else Tile(rows, columns, units, pieces, _warps(rows), 2)


def down_backward(width: int, itemsize: int, shared_memory: int) -> Tile | None:
    """Return the tile of `down_backward`, which holds up to 256 units of some rows, or None if none fits.

    Args:
        width: W.
        itemsize: Bytes of an element of the hidden layer.
        shared_memory: Bytes that a program may use.
    """
    part = -(-width // parts(width))
    units = _units(part)
    pieces = -(-part // units)
    columns, stages = (64, 3) if itemsize < 4 else (32, 2)

    def memory(rows: int) -> int:  # the gradient may be float32
        return 2 * columns * (4 * rows + itemsize * units * pieces) + 4 * rows * units

    rows = _rows(memory, itemsize, shared_memory)
    return None if rows is None else Tile(rows, columns, units, pieces, _warps(rows), stages)


def parts(width: int) -> int:
    """Return the number of programs that share the hidden layer of some rows in `down_backward`."""
    return -(-width // 256)


def unfit(width: int, itemsize: int, shared_memory: int) -> str | None:
    """Say why the kernels cannot hold an adapter, or None.

    Args:
        width: W.
        itemsize: Bytes of an element of the hidden layer.
        shared_memory: Bytes that a program may use.
    """
    if up_add(width, itemsize, shared_memory) and down_backward(width, itemsize, shared_memory):
        return None
    return f"an adapter {width} wide does not fit in the {shared_memory // 1024} KiB of shared memory of this device"


def _units(width: int) -> int:
    """Return the units of a piece: a power of two, on matrix units at least 16."""
    return min(64, max(16, 1 << (width - 1).bit_length()))


def _warps(rows: int) -> int:
    return 8 if rows > 64 else 4


def _rows(memory: Callable[[int], int], itemsize: int, shared_memory: int) -> int | None:
    """Return the most rows that fit: up to 128, of float32 up to 32, whose products are made of three."""
    rows = 128 if itemsize < 4 else 32
    while memory(rows) > shared_memory:
        rows //= 2
        if rows < _LEAST_ROWS:
            return None
    return rows
