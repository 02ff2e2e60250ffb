"""What every reader of a video can do, and the checks that all share."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType

import torch
from torch import Tensor

from aim_adapters.arguments import read_items, require_integer, shown
from aim_adapters.errors import ConfigError, StateError, VideoError

# Of the frames in a folder.
PICTURE_EXTENSIONS = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# One frame in RGB: four times 8K. What claims to be larger is refused before memory is taken.
MOST_PIXELS = 2**27


class VideoReader(ABC):
    """An open video, as `open_video` returns it: a context manager with ``len()`` and `get_frames`.

    A reader belongs to the process and to the thread that opened it.

    Attributes:
        name: Name of the video, with which errors begin.
        fps: Mean number of frames in a second; of an animated picture, as its first frame says; NaN where nothing does.
        frame_size: Height and width of a frame in pixels, as it is shown.
        codec: Short name of the codec, such as ``"h264"``.
        key_frames: Indices of frames that decoding can start at, ascending; None where it is not known.
    """

    name: str
    fps: float
    frame_size: tuple[int, int]
    codec: str
    key_frames: Sequence[int] | None = None

    def __init__(self, name: str) -> None:
        self.name, self._process = name, os.getpid()

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of frames."""

    @abstractmethod
    def close(self) -> None:
        """Close the file. A second call does nothing."""

    @abstractmethod
    def _read(self, indices: Sequence[int], size: tuple[int, int]) -> Sequence[Tensor]:
        """Return frames ``uint8 [H, W, 3]`` of a size, for indices that ascend and differ."""

    def get_frames(self, indices: Sequence[int] | Tensor, short_side: int | None = None) -> Tensor:
        """Return frames of the video; only what is needed for them is decoded.

        Args:
            indices: Which frames, from 0 to ``len() - 1``, in any order, also twice.
            short_side: Frames are made smaller while they are decoded, so that their shorter side has so many pixels,
                by a bilinear filter as wide as the reduction (no aliasing). They are never made larger.

        Returns:
            ``uint8 [T, 3, H, W]`` on the CPU, RGB, a row for each index.

        Raises:
            ConfigError: An index is no integer or out of range, or ``short_side`` is not an integer >= 1.
            VideoError: A frame cannot be decoded.
            StateError: The reader was opened by another process, such as the one that started this worker.
        """
        if os.getpid() != self._process:  # both would move the one file
            raise StateError(f"{self.name}: was opened by another process; open it in the process that reads it")
        wanted = [
            require_integer("each of indices", index, low=0)
            for index in read_items(indices, "indices must be a list of integers")
        ]
        if not wanted or max(wanted) >= len(self):
            raise ConfigError(f"indices must be some of 0 to {len(self) - 1} of {self.name}, got {shown(wanted)}")
        size = self.frame_size
        if short_side is not None:
            size = _scaled(size, require_integer("short_side", short_side, low=1, high=2**14))
        distinct = sorted(set(wanted))
        frames = torch.stack(list(self._read(distinct, size)))  # [t, H, W, 3]
        if distinct != wanted:
            place = {index: row for row, index in enumerate(distinct)}
            frames = frames[torch.tensor([place[index] for index in wanted])]
        return frames.permute(0, 3, 1, 2)  # [T, 3, H, W], channels last in memory, as they were decoded

    def __enter__(self) -> VideoReader:
        """Return the reader."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def __reduce__(self) -> str:
        """Refuse to be sent to another process."""
        raise TypeError(
            f"a reader of {self.name} cannot be pickled: it holds an open file. Send the name to the other process, "
            "and open it there"
        )


def require_size(name: str, height: int, width: int) -> tuple[int, int]:
    """Return the size of a frame.

    Args:
        name: Name of the video.
        height: Its height in pixels.
        width: Its width in pixels.

    Raises:
        VideoError: There are no pixels, or far too many.
    """
    if not 0 < height * width <= MOST_PIXELS:
        raise VideoError(f"{name}: has frames of {width} x {height} pixels; expected 1 to {MOST_PIXELS} pixels")
    return height, width


def _scaled(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    short = min(size)
    if short <= short_side:
        return size
    height, width = (max(round(side * short_side / short), 1) for side in size)
    return height, width
