"""State how the kernels cut up a sequence, as a table, without importing what compiles them."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

# Up to here one tile holds a sequence; nothing but the output need be kept for the backward pass.
WINDOW = 64
# Up to here a side of a head stays in shared memory, if it is no wider than this.
RESIDENT, RESIDENT_WIDTH = 272, 64


class Tiles(NamedTuple):
    """How a kernel is launched.

    Args:
        kind: ``"window"``, ``"resident"`` or ``"streaming"``.
        rows: Rows of a tile, whose programs or iterations go over one side.
        columns: Rows of the other side that are taken at once; of a window, frames that a program goes through.
        warps: Warps of a program.
        stages: Iterations whose loads are under way at once.
    """

    kind: str
    rows: int
    columns: int
    warps: int
    stages: int


@cache
def alternatives(tokens: int, head_dim: int, itemsize: int, *, backward: bool) -> tuple[Tiles, ...]:
    """Return what may be launched, the fastest first; the first that the device has shared memory for is.

    Args:
        tokens: N.
        head_dim: d.
        itemsize: Bytes of an element.
        backward: For the backward pass.
    """
    if tokens <= WINDOW:
        rows = max(16, _above(tokens))
        warps = {16: 1, 32: 1, 64: 4}[rows]
        return tuple(Tiles("window", rows, group, warps, stages) for group, stages in ((4, 2), (1, 1), (4, 1), (8, 2)))
    narrow = _above(head_dim) <= RESIDENT_WIDTH and itemsize == 2
    resident = [
        Tiles("resident", 64, columns, 4, stages)
        for columns, stages in (((128, 1), (64, 1), (64, 2)) if backward else ((128, 1), (128, 2), (64, 1)))
        if narrow and tokens <= RESIDENT
    ]
    streaming = [
        Tiles("streaming", *each)
        for each in ((128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2), (64, 32, 4, 1))
        if narrow or each[1] == 32
    ]
    return (*resident, *streaming)


def tiles_for(tokens: int, head_dim: int, itemsize: int, *, backward: bool, shared: int) -> Tiles | None:
    """Return the fastest of `alternatives` that fits, or None.

    Args:
        tokens: N.
        head_dim: d.
        itemsize: Bytes of an element.
        backward: For the backward pass.
        shared: Bytes of shared memory that a program may use.
    """
    for each in alternatives(tokens, head_dim, itemsize, backward=backward):
        if shared_memory(each, tokens, head_dim, itemsize) <= shared:
            return each
    return None


def shared_memory(tiles: Tiles, tokens: int, head_dim: int, itemsize: int) -> int:
    """Return the bytes of shared memory that a program may need. The compiler was never seen to take more.

    Args:
        tiles: How the kernel is launched.
        tokens: N.
        head_dim: d.
        itemsize: Bytes of an element.
    """
    kind, rows, columns, _, stages = tiles
    if kind == "window":
        held, square = 4 * rows * stages, (2 + 2 * stages) * rows * rows * 4
    elif kind == "resident":
        held, square = 2 * sum(pieces(tokens, columns)) + (2 * stages + 2) * rows, 4096
    else:
        held, square = (2 + 2) * rows + 2 * stages * columns, 4096
    return held * max(16, _above(head_dim)) * itemsize + square


def pieces(tokens: int, largest: int) -> tuple[int, int, int, int, int]:
    """Cut a sequence into up to five pieces whose sizes are powers of two, at least 16, and cover little more than it.

    Args:
        tokens: N.
        largest: Size that only the last piece may pass.
    """
    sizes: list[int] = []
    while tokens > 0:
        above = max(16, _above(tokens))
        size = above if above - tokens < 16 or len(sizes) == 4 else above // 2
        sizes.append(size if len(sizes) == 4 else min(size, largest))
        tokens -= sizes[-1]
    first, second, third, fourth, fifth = (sizes + [0] * 4)[:5]
    return first, second, third, fourth, fifth


def rest(tokens: int, columns: int) -> int:
    """Return the rows of the block behind the whole ones, a power of two, or 0 if there is none.

    Args:
        tokens: N.
        columns: Rows of a whole block.
    """
    return max(16, _above(tokens % columns)) if tokens % columns else 0


def _above(number: int) -> int:
    """Return the least power of two that is no less."""
    return 1 << (number - 1).bit_length()
