"""Training of a probe on what its frozen image model says of each clip, which is computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader

from aim_adapters.arguments import require_number
from aim_adapters.clip_spec import ClipSpec
from aim_adapters.core import evaluating, place_of
from aim_adapters.errors import ConfigError
from aim_adapters.recipes import Recipe
from aim_adapters.training.feeding import NO_LABEL, Batch, loader_options, reader_for, require_clips
from aim_adapters.training.probe_models import Probe
from aim_adapters.training.progress import Progress
from aim_adapters.training.settings import RunSettings
from aim_adapters.video import (
    ClipReader,
    ClipSampler,
    ClipTransform,
    Normalize,
    TrackedClips,
    VideoDataset,
)

_GIB = 2**30
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def cached_reader(model: nn.Module, data: Any, recipe: Recipe, spec: ClipSpec, *, dummy_data: bool) -> ClipReader:
    """Return how clips are read that are cached: as in an evaluation, since each is read only once.

    Args:
        model: The model.
        data: The training data.
        recipe: The recipe.
        spec: What the model reads.
        dummy_data: Whether clips are random instead.

    Raises:
        ConfigError: The model is no probe, or the data cannot be cached: it is a stream, or augments its clips.
    """
    if not isinstance(model, Probe):
        raise ConfigError(
            f"cache_gib is for the baselines 'probe' and 'attentive-probe', got a {type(model).__name__}, in which "
            "what reads the videos trains too; leave it out"
        )
    if not isinstance(data, VideoDataset) or dummy_data:
        got = "dummy_data=True" if dummy_data else f"a {type(data).__name__}"
        raise ConfigError(f"cache_gib needs the videos of a folder or a list, got {got}; leave it out")
    transform: Any = data.reader.transform
    transform = getattr(transform, "clip", transform)  # normalization is left to the device
    if getattr(transform, "train", False):
        raise ConfigError(
            "cache_gib keeps one clip of each video, but train was made with a transform that augments clips anew in "
            "every epoch; make it without, or leave out cache_gib"
        )
    reader = reader_for(data, recipe, spec)
    return dataclasses.replace(reader, train=False, transform=transform or ClipTransform(spec.image_size))


def require_room(model: Any, spec: ClipSpec, settings: RunSettings, *, gib: float, processes: int) -> None:
    """Refuse a cache of several processes, or one that takes too much memory.

    Args:
        model: The probe.
        spec: What the model reads.
        settings: Settings of the run.
        gib: GiB that it may take.
        processes: Number of processes.

    Raises:
        ConfigError: It is one of these.
    """
    most = require_number("cache_gib", gib, low=0.0, open_low=True)
    if processes > 1:
        raise ConfigError(f"cache_gib is for one process, got {processes}; a probe on cached features needs no more")
    blank = torch.zeros(1, spec.frames, len(spec.mean), *spec.image_size, **place_of(model.image_model))
    with evaluating(model):
        clip = model.read(blank)[0]
    needed = (settings.videos + 1) * clip.numel() * _DTYPES[settings.precision].itemsize / _GIB
    if needed > most:
        fewer = "" if clip.ndim == 2 else "take the baseline 'probe', which keeps one feature of each frame, "
        raise ConfigError(
            f"the features of {settings.videos:,} clips, {list(clip.shape)} each in {settings.precision}, take "
            f"{needed:.3g} GiB, more than cache_gib={most:.3g}; raise it if the device has the memory, {fewer}or leave "
            "out cache_gib"
        )


class CachedFeed:
    """The batches of a run, made of what a probe reads of each clip, which is on the device.

    Args:
        model: The probe.
        data: The training data, a copy of the caller's.
        settings: Settings of the run.
        spec: What the model reads.
        workers: Processes that decode; None: as many as there are cores.
        device: Where the features are.
        max_skipped: Share of videos that may be missing or broken.
        progress: What is said.

    Raises:
        ConfigError: The clips are not what the model reads.
        VideoError: Too many videos cannot be read.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        settings: RunSettings,
        spec: ClipSpec,
        *,
        workers: int | None,
        device: torch.device,
        max_skipped: float,
        progress: Progress,
    ) -> None:
        self.probe: nn.Module = model.probe
        self._data, self._settings = data, settings
        self._sampler = ClipSampler(len(data), seed=settings.seed)
        self._labels = torch.full((len(data) + 1,), NO_LABEL)  # the last row is of no clip
        normalize = Normalize(spec.mean, spec.std).to(device)
        dtype = _DTYPES[settings.precision]
        in_order = BatchSampler(ClipSampler(len(data), shuffle=False), settings.batch_size, drop_last=False)  # type: ignore[arg-type]
        loader: DataLoader[Any] = DataLoader(
            TrackedClips(data), batch_sampler=in_order, **loader_options(workers, device)
        )
        features: Tensor | None = None
        with evaluating(model.to(device)), torch.no_grad():
            for found in loader:
                data.note_skipped(found["skipped"], max_skipped=max_skipped)
                if not len(found["label"]):
                    continue
                require_clips(found["video"], (spec.frames, len(spec.mean), *spec.image_size))
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    read = model.read(normalize(found["video"].to(device, non_blocking=True))).to(dtype)
                if features is None:
                    features = read.new_zeros(len(data) + 1, *read.shape[1:])
                features[found["index"].to(device)] = read
                self._labels[found["index"]] = found["label"]
        if features is None:
            raise ConfigError("train holds no video that can be read")
        self._features = features
        (read_rows,) = (self._labels != NO_LABEL).nonzero(as_tuple=True)
        # For a video that cannot be read the next readable one stands in, as where each is read anew.
        self._rows = read_rows[torch.searchsorted(read_rows, torch.arange(len(data))) % len(read_rows)]
        size = features.numel() * features.element_size() / _GIB
        progress.say(
            f"keeps the features of {len(read_rows):,} clips, {list(features.shape[1:])} each, in {size:.3g} GiB of "
            f"{dtype}; clips are read once, as in an evaluation, so that nothing is augmented"
        )

    def epoch(self, epoch: int, skip: int) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Args:
            epoch: The epoch.
            skip: Steps of it that were taken before.
        """
        self._sampler.set_epoch(epoch)
        order = self._rows[[index for index, _ in self._sampler]]
        size, accumulate = self._settings.batch_size, self._settings.accumulate
        for place in range(skip * accumulate, self._settings.steps_per_epoch * accumulate):
            yield self._batch(order[place * size : (place + 1) * size])

    def blank(self) -> Batch:
        """Return a batch without clips, for a trial."""
        return self._batch(torch.empty(0, dtype=torch.int64))

    def note_skipped(self) -> None:
        """Do nothing: no video is read any more."""

    def _batch(self, rows: Tensor) -> Batch:
        """Return rows of the cache, filled up with the last one, which has no label."""
        filled = torch.full((self._settings.batch_size,), len(self._labels) - 1)
        filled[: len(rows)] = rows
        device = self._features.device
        names = [self._data.samples[index].name for index in rows.tolist()]
        return Batch(self._features[filled.to(device)], self._labels[filled].to(device), names)
