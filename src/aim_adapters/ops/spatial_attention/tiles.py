"""Table of how the kernels cut up a sequence, and the shared memory that this takes, without importing Triton."""

from __future__ import annotations

from typing import NamedTuple

# The longest sequence that one tile holds; for the backward pass nothing but the output need be kept.
MAX_WINDOW_TOKENS = 64
# The longest sequence, and the widest head, of which all keys or all queries stay in shared memory.
MAX_RESIDENT_TOKENS, MAX_RESIDENT_TOKENS_FORWARD, MAX_RESIDENT_HEAD_DIM = 272, 208, 64


class Tiles(NamedTuple):
    """A kind of kernel, and the sizes that it is launched with.

    Args:
        kind: ``"window"``, ``"resident"`` or ``"streaming"``.
        rows: Rows of a tile of the side (queries or keys) that programs or iterations go over.
        columns: Rows of the other side that a tile meets at once; of kind ``"window"``, frames of a program.
        warps: Warps of a program.
        stages: Iterations whose loads are under way at once.
    """

    kind: str
    rows: int
    columns: int
    warps: int
    stages: int


def alternatives(tokens: int, head_dim: int, *, added: bool, backward: bool) -> tuple[Tiles, ...]:
    """Return the tiles that a kernel may be launched with, the fastest first.

    The first that fits in the device's shared memory is taken.

    Args:
        tokens: N.
        head_dim: d.
        added: Whether a bias or a mask is added to the scores.
        backward: Whether it is for the backward pass.
    """
    width = _next_power_of_2(head_dim)
    if tokens <= MAX_WINDOW_TOKENS:
        rows = _next_power_of_2(tokens)
        groups = ((4, 2), (8, 2), (1, 1)) if added or not backward else ((1, 1), (4, 2))
        if width <= 32 and groups[0] == (4, 2):
            groups = ((8, 3), *groups)
        return tuple(Tiles("window", rows, group, 4 if rows == 64 else 1, stages) for group, stages in groups)
    tiles: list[Tiles] = []
    if width <= MAX_RESIDENT_HEAD_DIM:
        if tokens <= MAX_RESIDENT_TOKENS and backward:
            columns, stage_counts = (64, (1,)) if added else (128, (2, 1))
            tiles += [Tiles("resident", 64, columns, 4, stages) for stages in stage_counts]
        elif tokens <= MAX_RESIDENT_TOKENS_FORWARD and not added:
            tiles.append(Tiles("resident", 64, 128, 4, 1))
        if not added:
            tiles.append(Tiles("streaming", 64, 64, 4, 2))
    stage_counts = (1, 2) if added and backward else (2, 1)
    tiles += [Tiles("streaming", 64, 32, 4, stages) for stages in stage_counts]
    return tuple(tiles)


def tiles_for(tokens: int, head_dim: int, *, added: bool, backward: bool, shared: int) -> Tiles | None:
    """Return the fastest of `alternatives` that fits in shared memory, or None.

    Args:
        tokens: N.
        head_dim: d.
        added: Whether a bias or a mask is added to the scores.
        backward: Whether it is for the backward pass.
        shared: Bytes of shared memory that a program may use.
    """
    for tiles in alternatives(tokens, head_dim, added=added, backward=backward):
        if shared_memory(tiles, tokens, head_dim, added=added) <= shared:
            return tiles
    return None


def shared_memory(tiles: Tiles, tokens: int, head_dim: int, *, added: bool) -> int:
    """Return the bytes of shared memory that a program may need: no compiled kernel was seen to take more.

    Args:
        tiles: How the kernel is launched.
        tokens: N.
        head_dim: d.
        added: Whether a bias or a mask is added to the scores.
    """
    kind, rows, columns, _, stages = tiles
    width, twice = _next_power_of_2(head_dim), 0
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
        power = _next_power_of_2(tokens)
        size = power if power - tokens < 16 or len(sizes) == 4 else power // 2
        sizes.append(size if len(sizes) == 4 else min(size, largest))
        tokens -= sizes[-1]
    first, second, third, fourth, fifth = (sizes + [0] * 4)[:5]
    return first, second, third, fourth, fifth


def remainder(tokens: int, columns: int) -> int:
    """Return the number of rows of the block behind the whole ones, a power of two, or 0 if there is none.

    Args:
        tokens: N.
        columns: Rows of a whole block.
    """
    return _next_power_of_2(tokens % columns) if tokens % columns else 0


def _next_power_of_2(number: int) -> int:
    """Return the smallest power of two that is at least the number and at least 16."""
    power = 16
    while power < number:  # torch.compile can follow this where the number is a symbol
        power *= 2
    return power
