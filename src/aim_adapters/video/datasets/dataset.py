"""A dataset of videos with their classes, which survives videos that cannot be read."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from operator import index as as_index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from aim_adapters.arguments import read_items, require_integer, require_number, shown
from aim_adapters.errors import ConfigError, VideoError, warn
from aim_adapters.video.clips import ClipReader
from aim_adapters.video.datasets.files import missing, user_path
from aim_adapters.video.datasets.labels import class_indices
from aim_adapters.video.datasets.samples import Samples, SkippedVideo
from aim_adapters.video.datasets.skipping import NotesSkipped
from aim_adapters.video.decoding import Backend

# Broken videos in a row after which training does not look for a stand-in any further.
_MOST_IN_A_ROW = 100


@dataclass
class Listing:
    """The videos of a dataset as they were found or listed.

    Args:
        what: What lists them, for messages.
        root: Folder that names are relative to.
        names: Path of each video.
        labels: Name or index of its class.
        skipped: What was left out.
        where: Returns where an entry stands, for messages.
        gone: Positions of videos that do not exist; None: not known.
    """

    what: str
    root: str
    names: list[str]
    labels: list[str | int]
    skipped: list[SkippedVideo] = field(default_factory=list)
    where: Callable[[int], str] | None = None
    gone: set[int] | None = None

    def place(self, position: int) -> str:
        """Return where an entry stands."""
        return self.where(position) if self.where else f"{self.what}, {self.names[position]!r}"

    def without_missing(self) -> Listing:
        """Return the videos that exist; the others are listed as skipped.

        Raises:
            ConfigError: There is none.
        """
        gone = missing(self.root, self.names) if self.gone is None else self.gone
        if not self.names or len(gone) == len(self.names):
            none = (
                f"none of its {len(gone)} videos exists below {self.root!r}, such as {self.names[0]!r}" if gone else ""
            )
            raise ConfigError(f"{self.what}: {none or 'there is no video'}; check the path and root=")
        if not gone:
            return self
        names = [self.names[position] for position in sorted(gone)]
        warn(
            f"{self.what}: {len(gone)} of {len(self.names)} videos are missing below {self.root!r} and are left out: "
            f"{shown(names)}; .skipped lists them"
        )
        kept = [position for position in range(len(self.names)) if position not in gone]
        return Listing(
            self.what,
            self.root,
            [self.names[position] for position in kept],
            [self.labels[position] for position in kept],
            self.skipped + [SkippedVideo(name, "no such file") for name in names],
        )


@dataclass(frozen=True)
class LoadedClip:
    """What a worker process sends for one key.

    Args:
        clip: The clip, or None if the video cannot be read (and is not trained on).
        label: Its class.
        index: Index of the video that was read.
        skipped: Videos that could not be read on the way.
        name: Name of the video that was read.
    """

    clip: Tensor | None
    label: int
    index: int
    skipped: tuple[SkippedVideo, ...]
    name: str = ""


class VideoDataset(NotesSkipped, Dataset[tuple[Tensor, int]]):
    """Videos with their classes. An item is ``(clip, label)``.

    A key is an index, or a pair ``(index, seed)``: with the same seed, clip and augmentation are the same to the bit in
    any process. `ClipSampler` draws such pairs.

    A video that cannot be read is warned about and listed in ``skipped``. In training the next readable one stands in
    for it. In testing it is an error here, while `TrackedClips` and `collate_clips` leave it out of its batch.

    Args:
        videos: Pairs of a path and a label, the name of a class or its index.
        num_frames: Frames of a clip.
        root: Folder that paths are relative to.
        labels: Names of the classes in their order, such as ``train.labels``; by default the names found, sorted.
        stride: Distance between the frames of a clip; None: one frame of each of ``num_frames`` equal segments.
        transform: Called with the frames of a clip, uint8 ``[T, 3, h, w]``, such as ``transform_for(model)``.
        train: Sample at random, by the training rule; by default, if the transform is one for training.
        backend: Decoder, as in `open_video`.

    Raises:
        TypeError: ``root`` is no path.
        ConfigError: A setting is invalid, a label is not among ``labels``, or no video exists.
    """

    samples: Samples
    labels: tuple[str, ...]
    reader: ClipReader

    def __init__(
        self,
        videos: Iterable[tuple[str | os.PathLike[str], str | int]] | Listing,
        num_frames: int,
        *,
        root: str | os.PathLike[str] = "",
        labels: Sequence[str] | None = None,
        stride: int | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        train: bool | None = None,
        backend: Backend = "auto",
    ) -> None:
        if train is None:
            train = getattr(transform, "train", False) is True  # a method, of a module
        self.reader = ClipReader(num_frames, stride=stride, train=train, transform=transform, backend=backend)
        listing = videos if isinstance(videos, Listing) else _listed(videos, user_path("root", root))
        # Of a class whose videos are all missing, the name is known all the same.
        self.labels, indices = class_indices(listing.labels, labels, listing.place)
        listing.labels = list(indices)
        listing = listing.without_missing()
        self.samples = Samples(listing.root, listing.names, map(int, listing.labels))
        self._start_list(listing.what, listing.skipped, len(self.samples))

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        return self.reader.frames

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"<{self._what}: {len(self)} videos of {len(self.labels)} classes{skipped}>"

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        loaded = self.load(key)
        self.note_skipped(loaded.skipped)
        if loaded.clip is None:
            name, reason, _ = loaded.skipped[0]
            raise VideoError(
                f"{name}: {reason}; a DataLoader over TrackedClips(dataset) with collate_fn=collate_clips leaves it out"
            )
        return loaded.clip, loaded.label

    def load(self, key: int | tuple[int, int]) -> LoadedClip:
        """Return an item with a record of the videos that could not be read, without an error.

        Args:
            key: Index of a video, or ``(index, seed)``.

        Raises:
            IndexError: There is no such video.
            VideoError: None of many videos in a row can be read.
        """
        first, seed = key if isinstance(key, tuple) else (key, None)
        first = range(len(self))[as_index(first)]
        skipped: list[SkippedVideo] = []
        for position in range(first, first + min(len(self), _MOST_IN_A_ROW)):
            sample = self.samples[position % len(self)]
            try:
                clip, label = self.reader.read_labeled(sample.source, sample.label, seed)
            except VideoError as error:
                skipped.append(SkippedVideo(sample.name, str(error).removeprefix(f"{sample.source}: ")))
                if not self.reader.train:
                    return LoadedClip(None, sample.label, first, tuple(skipped))
            else:
                return LoadedClip(clip, label, position % len(self), tuple(skipped), sample.name)
        raise VideoError(
            f"{skipped[0].name}: {skipped[0].reason}; none of the {len(skipped)} videos from here on can be read"
        )

    def with_reader(self, reader: ClipReader) -> VideoDataset:
        """Return a dataset of the same videos that reads clips in another way; both list the same skipped videos.

        Args:
            reader: How clips are read.

        Raises:
            TypeError: It is no `ClipReader`.
        """
        if not isinstance(reader, ClipReader):
            raise TypeError(f"reader must be a ClipReader, got {shown(reader)} of type {type(reader).__name__}")
        other = copy.copy(self)
        other.reader = reader
        return other

    def subset(self, indices: Sequence[int]) -> VideoDataset:
        """Return a dataset of some of the videos, with the same classes.

        Args:
            indices: Which videos.

        Raises:
            ConfigError: There is none, or an index is no integer or out of range.
        """
        items = read_items(indices, "indices must be a list of integers", most=len(self))
        if not items:
            raise ConfigError("indices must be a list of integers, got none")
        positions = [require_integer("each of indices", item, low=0, high=len(self) - 1) for item in items]
        other = copy.copy(self)
        other.samples = self.samples.take(positions)
        other._start_list(self._what, [], len(positions))
        return other

    def split(self, share: float, *, seed: int = 0) -> tuple[VideoDataset, VideoDataset]:
        """Return two datasets, for training and for testing, with videos of each class in both where it has two.

        Args:
            share: Share of the videos of each class that are for testing.
            seed: Seed of the choice, which is the same each time.

        Raises:
            ConfigError: ``share`` is not between 0 and 1, or a part would be empty.
        """
        share = require_number("share", share, low=0.0, high=1.0, open_low=True)
        generator = torch.Generator().manual_seed(require_integer("seed", seed, low=0))
        test: list[int] = []
        for label in range(len(self.labels)):
            (positions,) = (self.samples.labels == label).nonzero()
            count = min(max(round(share * len(positions)), 1), len(positions) - 1)
            test += positions[torch.randperm(len(positions), generator=generator)[: max(count, 0)].numpy()].tolist()
        chosen = set(test)
        return self.subset([index for index in range(len(self)) if index not in chosen]), self.subset(sorted(test))


def _listed(videos: Any, root: Path) -> Listing:
    """Return pairs of path and label as a listing."""
    refusal = "videos must be pairs of a path and a label, the name of a class or its index"
    if isinstance(videos, (str, bytes, os.PathLike)) or not isinstance(videos, Iterable):
        raise ConfigError(f"{refusal}, got {shown(videos)}; for a folder use VideoFolder, for a CSV VideoList")
    names: list[str] = []
    labels: list[str | int] = []
    for item in videos:
        pair = tuple(item) if isinstance(item, (tuple, list)) else ()
        if len(pair) != 2 or not isinstance(pair[0], (str, os.PathLike)) or not isinstance(pair[1], (str, Integral)):
            raise ConfigError(f"{refusal}, got {shown(item)}")
        names.append(os.fspath(pair[0]))
        labels.append(pair[1] if isinstance(pair[1], str) else int(pair[1]))
    if not names:
        raise ConfigError(f"{refusal}, got none")
    return Listing("VideoDataset", str(root), names, labels)
