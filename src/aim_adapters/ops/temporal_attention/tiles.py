"""Sizes of the kernels' tiles and the shared memory that they take, without importing Triton."""

from __future__ import annotations


def smallest_tile(num_frames: int) -> int:
    """Return the number of rows of the smallest tile that holds a sequence of T frames.

    Args:
        num_frames: T, at most 128.
    """
    return 32 if num_frames <= 32 else 64 if num_frames <= 64 else 128


def shared_memory(num_frames: int, head_dim: int, itemsize: int) -> int:
    """Return the bytes of shared memory that the smallest tile may need in the backward pass.

    An upper bound: queries, keys, values and the gradient of the output, and two squares of probabilities and their
    gradients; at least two squares of float32, in which the gradient of a bias is folded. No compiled kernel was seen
    to take more.

    Args:
        num_frames: T, at most 128.
        head_dim: d.
        itemsize: Bytes of an element.
    """
    rows, width = smallest_tile(num_frames), max(16, 1 << (head_dim - 1).bit_length())
    return max((4 * rows * width + 2 * rows * rows) * itemsize, 2 * rows * rows * 4)
