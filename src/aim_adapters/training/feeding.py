"""Batches of clips for training: in an order and with random choices that depend on the run's seed alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
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


class Batch(NamedTuple):
    """The clips of one pass through the model.

    Attributes:
        video: uint8 ``[B, T, 3, H, W]``.
        labels: int64 ``[B]``.
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


class Feed:
    """The batches of a run.

    Args:
        data: The training data.
        settings: Settings of the run.
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
        *,
        rank: int,
        world: int,
        workers: int | None,
        device: torch.device,
        max_skipped: float,
    ) -> None:
        self.data, self.settings, self.rank, self.world, self.device = data, settings, rank, world, device
        self.max_skipped = max_skipped
        workers = default_workers() if workers is None else workers
        options: dict[str, Any] = {
            "num_workers": workers,
            "collate_fn": collate_clips,
            "pin_memory": device.type == "cuda",
            "persistent_workers": workers > 0,
            "prefetch_factor": 4 if workers else None,
            "worker_init_fn": one_thread,
            "generator": torch.Generator(),  # or it would draw from the caller's
        }
        if isinstance(data, VideoStream):
            self._batches = None
            self._loader: DataLoader[Any] = DataLoader(
                data.tracked(), batch_size=settings.batch_size, drop_last=True, **options
            )
        else:
            self._batches = _Batches(len(data), settings, rank=rank, world=world)
            self._loader = DataLoader(TrackedClips(data), batch_sampler=self._batches, **options)

    def epoch(self, epoch: int, skip: int) -> Iterator[Batch]:
        """Yield the batches of an epoch on the device.

        Args:
            epoch: The epoch.
            skip: Steps of it that were taken before.

        Raises:
            VideoError: Too many videos cannot be read.
        """
        passes = skip * self.settings.accumulate
        if self._batches is not None:
            self._batches.choose(epoch, skip)
            passes = 0
        else:
            self.data.set_epoch(epoch)  # type: ignore[union-attr]
        for found in self._loader:
            self.data.note_skipped(found["skipped"], max_skipped=self.max_skipped)
            if passes:
                passes -= 1
                continue
            # Pinned and not waited for: the copy runs beside the step before.
            video = found["video"].to(self.device, non_blocking=True)
            yield Batch(video, found["label"].to(self.device, non_blocking=True), self._names(found["index"]))

    def _names(self, indices: Tensor) -> list[str]:
        samples = getattr(self.data, "samples", None)
        return [] if samples is None else [samples[index].name for index in indices.tolist()]


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
