"""The videos of a dataset, packed into a few arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np


class VideoSample(NamedTuple):
    """One video of a dataset.

    Attributes:
        source: Its path.
        label: Index of its class.
        name: Its name in errors, predictions and reports: the path below the dataset's root.
    """

    source: str
    label: int
    name: str


class SkippedVideo(NamedTuple):
    """A file or an entry that a dataset leaves out.

    Attributes:
        name: Name of the video, file or entry.
        reason: Why it is left out.
        counts: Whether it is a video that should be there, so that it counts toward ``max_skipped``; not so a file that
            is no video.
    """

    name: str
    reason: str
    counts: bool = True


class Samples(Sequence[VideoSample]):
    """A sequence of `VideoSample` in three arrays instead of an object for each.

    Worker processes share the memory of their parent until one side writes to it. Merely looking at a Python object
    writes its reference count, so that a list of half a million paths is copied into every worker bit by bit; arrays
    are not.

    Args:
        root: Folder that names are relative to.
        names: Path of each video below ``root``, or an absolute one.
        labels: Class of each video.
    """

    def __init__(self, root: str, names: Iterable[str], labels: Iterable[int]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.root = root
        self._text = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self.labels = np.fromiter(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> VideoSample: ...

    @overload
    def __getitem__(self, index: slice) -> list[VideoSample]: ...

    def __getitem__(self, index: int | slice) -> VideoSample | list[VideoSample]:
        if isinstance(index, slice):
            return [self[item] for item in range(*index.indices(len(self)))]
        position = range(len(self))[index]  # an IndexError beyond the end; negative ones count from it
        name = os.fsdecode(self._text[self._ends[position] : self._ends[position + 1]])
        return VideoSample(str(Path(self.root, name)), int(self.labels[position]), name)

    def take(self, positions: Sequence[int]) -> Samples:
        """Return some of the videos.

        Args:
            positions: Which.
        """
        return Samples(self.root, (self[position].name for position in positions), self.labels[list(positions)])

    def __repr__(self) -> str:
        return f"<{len(self)} videos below {self.root!r}>"
