"""Videos that are pictures: a folder of frames, or an animated picture."""

from __future__ import annotations

import contextlib
import io
import math
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from aim_adapters.errors import VideoError
from aim_adapters.video.decoding.reader import PICTURE_EXTENSIONS, VideoReader, require_size

# What Pillow raises for pictures that are damaged, or far too large.
_FAILURES = (
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)


class FolderReader(VideoReader):
    """A folder of pictures of one size, which are the frames in the natural order of their names.

    Args:
        folder: The folder.
        name: Name for errors.

    Raises:
        VideoError: There are no pictures in it, or the first cannot be read.
    """

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(name)
        self.fps, self.codec = math.nan, "pictures"
        try:
            found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURE_EXTENSIONS]
        except OSError as error:
            raise VideoError(f"{name}: cannot be read: {error}") from error
        self._files = sorted((path for path in found if path.name[0] != "."), key=natural_key)
        if not self._files:
            raise VideoError(f"{name}: is a folder without pictures ({', '.join(sorted(PICTURE_EXTENSIONS))})")
        self.frame_size = _open(self._files[0], self.name)[1]

    def __len__(self) -> int:
        return len(self._files)

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _read(self, indices: Sequence[int], size: tuple[int, int]) -> Sequence[Tensor]:
        frames = []
        for index in indices:
            picture, own = _open(self._files[index], self.name)
            if own != self.frame_size:
                raise VideoError(
                    f"{self.name}: its pictures must have one size, got {self.frame_size} and, in "
                    f"{self._files[index].name}, {own}"
                )
            frames.append(_frame(picture, size))
        return frames


class AnimationReader(VideoReader):
    """An animated GIF, PNG or WebP.

    Args:
        content: Path, bytes or file object.
        name: Name for errors.

    Raises:
        VideoError: It cannot be read.
    """

    def __init__(self, content: Path | bytes | IO[bytes], name: str) -> None:
        super().__init__(name)
        with contextlib.ExitStack() as opened:
            try:
                self._picture = Image.open(io.BytesIO(content) if isinstance(content, bytes) else content)
                opened.callback(self._picture.close)
                self._count = getattr(self._picture, "n_frames", 1)
                width, height = self._picture.size
                self.frame_size = require_size(name, height, width)
                self.codec = str(self._picture.format).lower()
                seconds = self._picture.info.get("duration", 0) / 1000
            except _FAILURES as error:
                raise VideoError(f"{name}: cannot be read as a picture: {error}") from error
            opened.pop_all()  # it stays open
        self.fps = 1 / seconds if seconds else math.nan

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Close the file."""
        self._picture.close()

    def _read(self, indices: Sequence[int], size: tuple[int, int]) -> Sequence[Tensor]:
        frames = []
        for index in indices:
            try:
                self._picture.seek(index)
                frames.append(_frame(_rgb(self._picture), size))
            except _FAILURES as error:
                raise VideoError(f"{self.name}: frame {index} cannot be decoded: {error}") from error
        return frames


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Return a key that sorts ``frame2`` before ``frame10``.

    Args:
        path: A file.
    """
    parts = re.split(r"(\d+)", path.name)
    return [(1, 0, part) if index % 2 == 0 else (0, int(part), part) for index, part in enumerate(parts) if part]


def _open(path: Path, name: str) -> tuple[Image.Image, tuple[int, int]]:
    """Return a picture, turned as it says, and its height and width."""
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            require_size(f"{name}: {path.name}", height, width)
            picture = _rgb(ImageOps.exif_transpose(opened))
    except _FAILURES as error:
        raise VideoError(f"{name}: its picture {path.name} cannot be read: {error}") from error
    return picture, (picture.height, picture.width)


def _rgb(picture: Image.Image) -> Image.Image:
    """Return a picture in RGB; Pillow would cut gray of 16 bits off at 255."""
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
    return picture.convert("RGB")


def _frame(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    height, width = size
    if (picture.height, picture.width) != size:
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture))  # [H, W, 3]
