"""Sizes of the kernels' tiles and the shared memory that they take, without importing Triton."""

from __future__ import annotations

SIZES = (32, 64, 128)  # of a tile, in rows


def smallest_tile(num_frames: int) -> int:
    """Return the number of rows of the smallest tile that holds a sequence of T frames.

    Args:
        num_frames: T, at most 128.
    """
    return 32 if num_frames <= 32 else 64 if num_frames <= 64 else 128


def columns(num_frames: int, head_dim: int) -> tuple[int, int]:
    """Return the widths, powers of two from 16 on, of the tile that holds a head, and of one beside it, or 0.

    Short sequences of wide heads take two: a head of 80 columns 64 and 16. Larger tiles lack the registers for that.

    Args:
        num_frames: T, at most 128.
        head_dim: d.
    """
    if 64 < head_dim <= 96 and num_frames <= SIZES[0]:
        return 64, _next_power_of_2(head_dim - 64)
    return _next_power_of_2(head_dim), 0


def shared_memory(num_frames: int, head_dim: int, itemsize: int) -> int:
    """Return the bytes of shared memory that the smallest tile may need in the backward pass.

    An upper bound: queries, keys, values and the gradient of the output, and two squares of probabilities and their
    gradients. No compiled kernel was seen to take more.

    Args:
        num_frames: T, at most 128.
        head_dim: d.
        itemsize: Bytes of an element.
    """
    rows, width = smallest_tile(num_frames), sum(columns(num_frames, head_dim))
    return (4 * rows * width + 2 * rows * rows) * itemsize


def _next_power_of_2(number: int) -> int:
    return max(16, 1 << (number - 1).bit_length())
