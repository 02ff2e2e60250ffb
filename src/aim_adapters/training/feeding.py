"""Batches of clips for training: in an order and with random choices that depend on the run's seed alone."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from aim_adapters.clip_spec import ClipSpec
from aim_adapters.errors import ConfigError
from aim_adapters.recipes import Recipe
from aim_adapters.training.settings import RunSettings
from aim_adapters.video import (
    ClipReader,
    ClipSampler,
    ClipTransform,
    TrackedClips,
    VideoDataset,
    VideoStream,
    collate_clips,
    default_workers,
    mirrored_classes,
    one_thread,
)

# The label of a clip that fills up a batch: cross entropy leaves it out.
NO_LABEL = -100


class Batch(NamedTuple):
    """The clips of one pass through the model: always as many, so that every pass has one shape.

    Attributes:
        video: uint8 ``[B, T, 3, H, W]``.
        labels: int64 ``[B]``; `NO_LABEL` where there was no clip left.
        names: Names of the videos.
    """

    video: Tensor
    labels: Tensor
    names: list[str]


def reader_for(data: Any, recipe: Recipe, spec: ClipSpec) -> ClipReader:
    """Return how training clips are read: as the recipe says, where the caller has not chosen for this dataset.

    Args:
        data: The training data.
        recipe: The recipe.
        spec: What the model reads.

    Raises:
        ConfigError: The dataset reads clips of another length, or normalizes them.
    """
    own: ClipReader = data.reader
    if own.frames != spec.frames:
        raise ConfigError(
            f"the data has clips of {own.frames} frames, the model reads {spec.frames}; make it with "
            f"num_frames={spec.frames}, or call aim.set_num_frames(model, {own.frames})"
        )
    transform: Any = own.transform
    if transform is None:
        augmentation = recipe.augmentation
        mirrored = mirrored_classes(data.labels) if augmentation.flip else {}
        transform = ClipTransform(
            spec.image_size, train=True, augment=dataclasses.replace(augmentation, swapped_labels=mirrored)
        )
    elif getattr(transform, "normalize", None) is not None:
        # transform_for's: normalization is left to the device.
        transform = transform.clip
    return dataclasses.replace(own, train=True, stride=own.stride or spec.stride, clips=1, transform=transform)


def loader_options(workers: int | None, device: torch.device) -> dict[str, Any]:
    """Return the arguments of a DataLoader that reads training clips.

    Args:
        workers: Processes that decode; None: as many as there are cores for each that trains.
        device: Where the batches go.
    """
    workers = default_workers() if workers is None else workers
    return {
        "num_workers": workers,
        "collate_fn": collate_clips,
        "pin_memory": device.type == "cuda",
        "persistent_workers": workers > 0,
        "worker_init_fn": _start_worker,
        "generator": torch.Generator(),  # or it would draw from the caller's
    }


def require_clips(video: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse clips that are not what the model reads.

    Args:
        video: Clips of the data.
        shape: Shape of each, ``(T, C, H, W)``.

    Raises:
        ConfigError: They have another shape, or are normalized already.
    """
    if video.dtype != torch.uint8 or tuple(video.shape[1:]) != shape:
        raise ConfigError(
            f"the clips of train are {video.dtype} {list(video.shape[1:])}, expected torch.uint8 {list(shape)}; leave "
            "transform out, or pass a ClipTransform or one that returns uint8 frames of this size, as they are "
            "normalized on the device"
        )


class Feed:
    """The batches of a run.

    Args:
        data: The training data, a copy of the caller's.
        settings: Settings of the run.
        spec: What the model reads.
        rank: Index of this process.
        world: Number of processes.
        workers: Processes that decode; None: as many as there are cores for each.
        device: Where the batches go.
        max_skipped: Share of videos that may be missing or broken.
    """

    def __init__(
        self,
        data: VideoDataset | VideoStream,
        settings: RunSettings,
        spec: ClipSpec,
        *,
        rank: int,
        world: int,
        workers: int | None,
        device: torch.device,
        max_skipped: float,
    ) -> None:
        self.data, self.settings, self.rank, self.world, self.device = data, settings, rank, world, device
        self.max_skipped = max_skipped
        self._shape = (spec.frames, len(spec.mean), *spec.image_size)
        options = loader_options(workers, device)
        if isinstance(data, VideoStream):
            data.seed = settings.seed if data.seed is None else data.seed
            self._batches = None
            self._loader: DataLoader[Any] = DataLoader(data.tracked(), batch_size=settings.batch_size, **options)
        else:
            self._batches = _Batches(len(data), settings, rank=rank, world=world)
            self._loader = DataLoader(TrackedClips(data), batch_sampler=self._batches, **options)

    def epoch(self, epoch: int, skip: int) -> Iterator[Batch]:
        """Yield the batches of an epoch on the device.

        Where the data ends before the epoch, as a stream's may on one process, the rest has no clips.

        Args:
            epoch: The epoch.
            skip: Steps of it that were taken before.

        Raises:
            ConfigError: The clips are not what the model reads.
            VideoError: Too many videos cannot be read.
        """
        size = self.settings.batch_size
        skipped = skip * self.settings.accumulate
        passes = self.settings.steps_per_epoch * self.settings.accumulate - skipped
        if self._batches is not None:
            self._batches.choose(epoch, skip)
            skipped = 0
        else:
            self.data.set_epoch(epoch)  # type: ignore[union-attr]
        full = islice(self._full(), skipped, None)
        for _ in range(passes):
            video, labels, indices = next(full, (torch.empty(0), torch.empty(0), torch.empty(0)))
            if len(labels) < size:
                video, labels = self._filled(video, labels)
            # Pinned and not waited for: the copy runs beside the step before.
            video = video.to(self.device, non_blocking=True)
            yield Batch(video, labels.to(self.device, non_blocking=True), self._names(indices))

    def blank(self) -> Batch:
        """Return a batch without clips, for a trial."""
        video, labels = self._filled(torch.empty(0), torch.empty(0))
        return Batch(video.to(self.device), labels.to(self.device), [])

    def note_skipped(self) -> None:
        """Let every process know which videos all of them have left out.

        Raises:
            VideoError: They are too many.
        """
        if self.world > 1:
            found: list[Any] = [None] * self.world
            dist.all_gather_object(found, list(self.data.skipped))
            self.data.note_skipped([record for part in found for record in part], max_skipped=self.max_skipped)

    def _full(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield full batches, and a last one of what is left: video, labels, indices."""
        size = self.settings.batch_size
        waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        count = 0
        for found in self._loader:
            self.data.note_skipped(found["skipped"], max_skipped=self.max_skipped)
            if not len(found["label"]):
                continue
            require_clips(found["video"], self._shape)
            waiting.append((found["video"], found["label"], found["index"]))
            count += len(found["label"])
            if count < size and self._batches is None:
                continue  # each worker ends its part of a stream with a smaller batch
            video, labels, indices = waiting[0] if len(waiting) == 1 else map(torch.cat, zip(*waiting, strict=True))
            yield video[:size], labels[:size], indices[:size]
            count -= min(count, size)
            waiting = [(video[size:], labels[size:], indices[size:])] if count else []
        if waiting:
            video, labels, indices = map(torch.cat, zip(*waiting, strict=True))
            yield video, labels, indices

    def _filled(self, video: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return a batch filled up with clips that do not count."""
        size = self.settings.batch_size
        filled = torch.zeros(size, *self._shape, dtype=torch.uint8)
        marks = torch.full((size,), NO_LABEL)
        if len(labels):
            filled[: len(labels)], marks[: len(labels)] = video, labels
        return filled, marks

    def _names(self, indices: Tensor) -> list[str]:
        samples = getattr(self.data, "samples", None)
        return [] if samples is None else [samples[int(index)].name for index in indices]


class DummyFeed:
    """Random clips made once on the device, to time training without decoding.

    Args:
        spec: What the model reads.
        settings: Settings of the run.
        device: Where the clips are.
    """

    def __init__(self, spec: ClipSpec, settings: RunSettings, device: torch.device) -> None:
        shape = (settings.batch_size, spec.frames, len(spec.mean), *spec.image_size)
        generator = torch.Generator(device).manual_seed(settings.seed)
        video = torch.randint(256, shape, dtype=torch.uint8, device=device, generator=generator)
        labels = torch.arange(settings.batch_size, device=device) % len(settings.labels)
        self._batch, self._settings = Batch(video, labels, []), settings

    def epoch(self, epoch: int, skip: int) -> Iterator[Batch]:
        """Yield the same batch for every pass of an epoch."""
        for _ in range((self._settings.steps_per_epoch - skip) * self._settings.accumulate):
            yield self._batch

    def note_skipped(self) -> None:
        """Do nothing: no video is read."""

    def blank(self) -> Batch:
        """Return a batch for a trial."""
        return self._batch


class _Batches:
    """The keys of each batch of this process, from any step of an epoch on."""

    def __init__(self, length: int, settings: RunSettings, *, rank: int, world: int) -> None:
        self.settings, self.skip = settings, 0
        self._sampler = ClipSampler(length, seed=settings.seed, rank=rank, world=world)

    def choose(self, epoch: int, skip: int) -> None:
        self.skip = skip
        self._sampler.set_epoch(epoch, start=min(skip * self.settings.total_batch, self._sampler.length))

    def __len__(self) -> int:
        return (self.settings.steps_per_epoch - self.skip) * self.settings.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        keys = iter(self._sampler)
        for _ in range(len(self)):
            yield [key for _, key in zip(range(self.settings.batch_size), keys, strict=False)]


def _start_worker(worker: int) -> None:
    """Prepare a worker process: one thread, and signals are left to the process that trains.

    A scheduler sends SIGTERM to all processes, and a terminal SIGINT. A worker that died of it would end the run in the
    middle of a step, before it is saved.
    """
    one_thread(worker)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
