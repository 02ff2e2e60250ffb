"""State how the kernels cut up a sequence, as a table, without importing what compiles them."""

from __future__ import annotations

from typing import NamedTuple

# Up to here one tile holds a sequence; nothing but the output need be kept for the backward pass.
WINDOW = 64
# Up to here a side of a head stays in shared memory, if it is no wider than this.
RESIDENT, RESIDENT_FORWARD, RESIDENT_WIDTH = 272, 208, 64


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


def alternatives(tokens: int, head_dim: int, *, added: bool, backward: bool) -> tuple[Tiles, ...]:
    """Return what may be launched, the fastest first; the first that the device has shared memory for is.

    Args:
        tokens: N.
        head_dim: d.
        added: There is a bias or a mask.
        backward: For the backward pass.
    """
    width = _above(head_dim)
    if tokens <= WINDOW:
        rows = _above(tokens)
        groups = ((4, 2), (8, 2), (1, 1)) if added or not backward else ((1, 1), (4, 2))
        return tuple(Tiles("window", rows, group, 4 if rows == 64 else 1, stages) for group, stages in groups)
    tiles: list[Tiles] = []
    if width <= RESIDENT_WIDTH:
        if tokens <= RESIDENT and backward:
            tiles += [Tiles("resident", 64, 64 if added else 128, 4, each) for each in ((1,) if added else (2, 1))]
        elif tokens <= RESIDENT_FORWARD and not added:
            tiles.append(Tiles("resident", 64, 128, 4, 1))
        if not added:
            tiles.append(Tiles("streaming", 64, 64, 4, 2))
    stages = (1, 2) if added and backward else (2, 1)
    tiles += [Tiles("streaming", 64, 32, 4, each) for each in stages]
    return tuple(tiles)


def tiles_for(tokens: int, head_dim: int, *, added: bool, backward: bool, shared: int) -> Tiles | None:
    """Return the fastest of `alternatives` that fits, or None.

    Args:
        tokens: N.
        head_dim: d.
        added: There is a bias or a mask.
        backward: For the backward pass.
        shared: Bytes of shared memory that a program may use.
    """
    for each in alternatives(tokens, head_dim, added=added, backward=backward):
        if shared_memory(each, tokens, head_dim, added=added) <= shared:
            return each
    return None


def shared_memory(tiles: Tiles, tokens: int, head_dim: int, *, added: bool) -> int:
    """Return the bytes of shared memory that a program may need. The compiler was never seen to take more.

    Args:
        tiles: How the kernel is launched.
        tokens: N.
        head_dim: d.
        added: There is a bias or a mask.
    """
    kind, rows, columns, _, stages = tiles
    width, twice = _above(head_dim), 0
    if kind == "window":
        held, pairs = 4 * rows * stages, rows * (rows + 4)
    elif kind == "resident":
        kept = sum(pieces(tokens, columns))
        held, pairs = 2 * kept + (2 * stages + 2) * rows, rows * columns
        # GPUs older than Hopper keep what stays as rows and as columns, and little beside it.
        twice = 2 * width * (4 * kept + 2 * stages * rows) + 4096
    else:
        held, pairs = 4 * rows + 2 * stages * columns, rows * columns
    # Elements of 2 bytes; and scores, bias and mask, of 4, which a window adds up ahead of the loop.
    return max(twice, 2 * held * width + 4 * pairs * (1 + 2 * (stages - 1) * (added and kind != "window")))


def pieces(tokens: int, largest: int) -> tuple[int, int, int, int, int]:
    """Cut a sequence into up to five pieces whose sizes are powers of two, at least 16, and cover little more than it.

    Args:
        tokens: N.
        largest: Size that only the last piece may pass.
    """
    sizes: list[int] = []
    while tokens > 0:
        above = _above(tokens)
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
    return _above(tokens % columns) if tokens % columns else 0


def _above(number: int) -> int:
    """Return the least power of two that is no less, at least 16."""
    power = 16
    while power < number:  # what a compiler can follow where the number is a symbol
        power *= 2
    return power
