"""Windows of a frame: which tokens belong to each, and which of them attend to one another."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def tile(
    height: int, width: int, size: tuple[int, int], shift: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Tile a frame with windows.

    Args:
        height: Of a frame in tokens, a multiple of the windows'.
        width: The same.
        size: Height and width of a window.
        shift: How far the windows are shifted, down and right. A window as high or wide as the frame is not.
        device: Where the result is wanted.

    Returns:
        The tokens of each window, int32 ``[W, N]``; and what is added to the scores ``[W, N, N]`` in float32, -100
        between tokens that are neighbors by the shift alone, or None where there are none.
    """
    shift = (0 if size[0] >= height else shift[0], 0 if size[1] >= width else shift[1])
    # What is made in a mode that watches operators, as of tensors without memory, is fit for that mode alone.
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return _tile(height, width, size, shift, device)
    with torch.inference_mode(False):  # what is kept must serve training too
        index, bias = _tile_once(height, width, size, shift, device)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _captured[id(index)] = index, bias  # a CUDA graph reads them as long as it lives
    return index, bias


def _tile(
    height: int, width: int, size: tuple[int, int], shift: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    tokens = torch.arange(height * width, dtype=torch.int32, device=device).view(height, width)
    index = _partition(tokens.roll((-shift[0], -shift[1]), (0, 1)), size)
    if not any(shift):
        return index, None
    rows, columns = (
        _parts(length, window, by, device) for length, window, by in zip((height, width), size, shift, strict=True)
    )
    part = _partition(3 * rows[:, None] + columns[None, :], size)  # [W, N]
    return index, (part[:, :, None] != part[:, None, :]).float() * -100.0


_captured: dict[int, tuple[Tensor, Tensor | None]] = {}
_tile_once = functools.lru_cache(maxsize=64)(_tile)


def _parts(length: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Number the parts that a shift cuts a side into."""
    place = torch.arange(length, device=device)
    return (place >= length - window).long() + (place >= length - shift).long()


def _partition(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Turn ``[height, width]`` into ``[W, N]``."""
    tiles: Tensor = x.unflatten(1, (-1, size[1])).unflatten(0, (-1, size[0])).permute(0, 2, 1, 3)
    return tiles.flatten(2).flatten(0, 1)
