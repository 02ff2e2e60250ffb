"""Videos that come one after the other out of large files, split over processes by the engine that reads these."""

from __future__ import annotations

import copy
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from aim_adapters.arguments import require_integer, shown
from aim_adapters.errors import ConfigError, VideoError
from aim_adapters.video.clips import ClipReader
from aim_adapters.video.datasets.dataset import LoadedClip
from aim_adapters.video.datasets.labels import checked_labels, class_indices
from aim_adapters.video.datasets.sampler import clip_seed
from aim_adapters.video.datasets.samples import SkippedVideo
from aim_adapters.video.datasets.skipping import NotesSkipped
from aim_adapters.video.decoding import Backend


@dataclass(frozen=True)
class StoredVideo:
    """A video inside of a larger file.

    Args:
        name: Its name.
        data: Content of its file, or None if it cannot be had.
        label: Name or index of its class.
        problem: Why it cannot be had.
    """

    name: str
    data: bytes | None
    label: str | int = ""
    problem: str = ""


class VideoStream(NotesSkipped, IterableDataset[tuple[Tensor, int]], ABC):
    """Videos out of large files. An item is ``(clip, label)``; what cannot be read is left out.

    In a DataLoader with workers, iterate over ``tracked()`` with ``collate_fn=collate_clips`` and call
    ``note_skipped``, so that this process learns what the workers have left out.

    Args:
        what: Name of the source, for messages.
        num_frames: Frames of a clip.
        labels: Names of the classes in their order.
        stride: Distance between the frames of a clip; None: one frame of each of ``num_frames`` equal segments.
        transform: Called with the frames of a clip, uint8 ``[T, 3, h, w]``, such as ``transform_for(model)``.
        train: Sample at random, by the training rule; by default, if the transform is one for training.
        backend: Decoder, as in `open_video`.
        seed: Seed of order, clips and augmentation; with it an epoch is the same each time, and `set_epoch` has to be
            called before each. None: PyTorch's global generator.
        length: Number of videos, if it is known: for ``len``, and for the limit of `note_skipped`.

    Raises:
        ConfigError: A setting is invalid.
    """

    labels: tuple[str, ...]
    reader: ClipReader

    def __init__(
        self,
        what: str,
        num_frames: int,
        *,
        labels: Sequence[str],
        stride: int | None,
        transform: Callable[[Tensor], Tensor] | None,
        train: bool | None,
        backend: Backend,
        seed: int | None,
        length: int | None,
    ) -> None:
        if train is None:
            train = getattr(transform, "train", False) is True  # a method, of a module
        self.reader = ClipReader(num_frames, stride=stride, train=train, transform=transform, backend=backend)
        self.labels = checked_labels(labels)
        self.seed = None if seed is None else require_integer("seed", seed, low=0)
        self.length = None if length is None else require_integer("length", length, low=0)
        # Shared with worker processes, also with those that stay from epoch to epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._indices: dict[str | int, int] = {}  # of the labels met so far
        self._start_list(what, [], self.length)

    @abstractmethod
    def stored(self) -> Iterator[StoredVideo]:
        """Yield the videos of this process and worker."""

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        return self.reader.frames

    @property
    def epoch(self) -> int:
        """The epoch that is read next."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is read next.

        Args:
            epoch: Epoch.

        Raises:
            ConfigError: It is no integer >= 0.
        """
        self._epoch.fill_(require_integer("epoch", epoch, low=0))

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError(f"{self._what} does not know how many videos it has; pass length=")
        return self.length

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for loaded in self.tracked():
            self.note_skipped(loaded.skipped)
            if loaded.clip is not None:
                yield loaded.clip, loaded.label

    def tracked(self) -> TrackedStream:
        """Return the same videos with a record of those that could not be read, for `collate_clips`."""
        return TrackedStream(self)

    def with_reader(self, reader: ClipReader) -> VideoStream:
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

    def load(self, video: StoredVideo, epoch: int) -> LoadedClip:
        """Return the clip of a video, with a record if it cannot be read.

        Args:
            video: The video.
            epoch: Epoch that it is read in.

        Raises:
            ConfigError: Its label is not among the labels.
        """
        if video.data is None:
            return LoadedClip(None, -1, -1, (SkippedVideo(video.name, video.problem),))
        label = self._index(video)
        source = io.BytesIO(video.data)
        source.name = video.name  # what errors call it
        seed = None if self.seed is None else clip_seed(self.seed, epoch, video.name)
        try:
            clip, label = self.reader.read_labeled(source, label, seed)
        except VideoError as error:
            reason = str(error).removeprefix(f"{video.name}: ")
            return LoadedClip(None, label, -1, (SkippedVideo(video.name, reason),))
        return LoadedClip(clip, label, -1, (), video.name)

    def _index(self, video: StoredVideo) -> int:
        if video.label not in self._indices:
            self._indices[video.label] = class_indices([video.label], self.labels, lambda _: video.name)[1][0]
        return self._indices[video.label]


class TrackedStream(IterableDataset[LoadedClip]):
    """The clips of a stream with a record of the videos that could not be read, for `collate_clips`.

    Args:
        stream: A stream of videos.
    """

    def __init__(self, stream: VideoStream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[LoadedClip]:
        epoch = self.stream.epoch
        for video in self.stream.stored():
            yield self.stream.load(video, epoch)


class LitDataVideos(VideoStream):
    """Videos in a dataset that LitData has optimized, local or in the cloud, split over processes by LitData.

    An item of it is a dictionary with ``"video"``, the bytes of a video's file, ``"label"``, the name or index of its
    class, and, if you like, ``"name"``.

    Args:
        source: Path or address of the dataset, or a ``litdata.StreamingDataset`` with settings of your own.
        num_frames: Frames of a clip.
        labels: Names of the classes in their order.
        stride: Distance between the frames of a clip; None: one frame of each of ``num_frames`` equal segments.
        transform: Called with the frames of a clip, uint8 ``[T, 3, h, w]``, such as ``transform_for(model)``.
        train: Sample at random, by the training rule; by default, if the transform is one for training.
        backend: Decoder, as in `open_video`.
        seed: Seed of clips and augmentation; None: PyTorch's global generator.

    Raises:
        ImportError: litdata is not installed.
        ConfigError: A setting is invalid, or an item is another one.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Any,
        num_frames: int,
        *,
        labels: Sequence[str],
        stride: int | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        train: bool | None = None,
        backend: Backend = "auto",
        seed: int | None = None,
    ) -> None:
        try:
            from litdata import StreamingDataset
        except ImportError as error:
            raise ImportError("LitDataVideos needs litdata: pip install litdata") from error
        super().__init__(
            f"LitDataVideos({shown(source)})",
            num_frames,
            labels=labels,
            stride=stride,
            transform=transform,
            train=train,
            backend=backend,
            seed=seed,
            length=None,
        )
        if isinstance(source, (str, os.PathLike)):
            source = StreamingDataset(os.fspath(source), shuffle=self.reader.train, seed=self.seed or 0)
        elif not isinstance(source, StreamingDataset):
            raise ConfigError(f"source must be a path or a litdata.StreamingDataset, got {shown(source)}")
        self.source = source

    def stored(self) -> Iterator[StoredVideo]:
        """Yield the videos of this process and worker."""
        self.source.set_epoch(self.epoch + 1)  # LitData counts from one
        for position, item in enumerate(self.source):
            video = item.get("video") if isinstance(item, dict) else None
            if not isinstance(video, bytes) or "label" not in item:
                raise ConfigError(
                    f"{self._what}: an item must be a dictionary with 'video', bytes, and 'label', got {shown(item)}"
                )
            yield StoredVideo(str(item.get("name", f"video {position}")), video, item["label"])
