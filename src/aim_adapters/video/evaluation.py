"""The accuracy of a model on a test set, on one process or on several."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from aim_adapters.arguments import require_flags, require_integer, require_number, shown
from aim_adapters.clip_spec import ClipSpec
from aim_adapters.errors import ConfigError
from aim_adapters.video.answers import CLIPS, Answerer, answering, device_of, parse_views, place_on, spec_of
from aim_adapters.video.clips import ClipReader
from aim_adapters.video.datasets import (
    SkippedVideo,
    TrackedClips,
    VideoDataset,
    VideoStream,
    collate_clips,
    default_workers,
    one_thread,
)
from aim_adapters.video.scores import Evaluation
from aim_adapters.video.transforms import ClipTransform


@dataclass(frozen=True)
class _Answer:
    """What a model says of one video."""

    index: int
    label: int
    probabilities: Tensor


def evaluate(
    model: nn.Module,
    dataset: VideoDataset | VideoStream,
    views: str = "3x1",
    *,
    batch_size: int = 8,
    workers: int | None = None,
    device: str | torch.device | None = None,
    precision: str | None = None,
    spec: ClipSpec | None = None,
    max_skipped: float = 0.05,
    progress: bool = True,
) -> Evaluation:
    """Evaluate a model on videos: the probabilities of each are averaged over its views.

    Where several processes run (``torchrun``, ``accelerate launch``), each reads its share of the videos and all return
    the whole evaluation. Every video is counted once. Clips always go through the model in passes of eight, so that
    neither ``batch_size`` nor the number of processes changes a digit.

    Args:
        model: A wrapped model; or another module that maps ``[B, T, C, H, W]`` to ``[B, K]``, with ``spec``. It is left
            in the mode that it was in.
        dataset: The videos. A transform or stride that it was made with is used; else the model's `clip_spec` says.
        views: Clips in time x crops in space, such as ``"3x1"`` for Kinetics and ``"1x3"`` for Something-Something.
        batch_size: Videos that are decoded as one batch.
        workers: Processes that decode; by default as many as there are cores for each process.
        device: Where the model is moved before; by default it stays where it is.
        precision: ``"fp32"``, ``"bf16"``, ``"fp16"`` or ``"fp8"``; by default as the caller's autocast says.
        spec: What the model reads, if it does not say so itself.
        max_skipped: Share of the videos that may be missing or broken.
        progress: Show on standard error how far it is.

    Returns:
        The evaluation: accuracies, confusion, predictions, videos that were left out.

    Raises:
        TypeError: ``model`` is no module, or ``dataset`` is of another kind.
        ConfigError: A setting is invalid, or the classes of model and dataset differ.
        StateError: The model returns no classes.
        VideoError: More videos than ``max_skipped`` are missing or cannot be read.
    """
    spec = spec_of(model, spec)
    clips, crops = parse_views(views)
    if not isinstance(dataset, (VideoDataset, VideoStream)):
        raise TypeError(f"dataset must be a VideoFolder or another VideoDataset or VideoStream, got {shown(dataset)}")
    batch_size = require_integer("batch_size", batch_size, low=1)
    workers = default_workers() if workers is None else require_integer("workers", workers, low=0, high=1024)
    require_number("max_skipped", max_skipped, low=0.0)
    require_flags(progress=progress)
    _require_labels(spec, dataset)
    place_on(model, device)
    data = dataset.with_reader(_reader(dataset.reader, spec, clips, crops))
    answerer = Answerer(model, spec, device=device_of(model), precision=precision)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    sharded = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    if sharded and isinstance(data, VideoStream):
        raise ConfigError("a sharded model is evaluated on a dataset, not on a stream, whose parts differ in length")
    batches = _Batches(data, batch_size=batch_size, workers=workers, rank=rank, world=world, max_skipped=max_skipped)
    with answering(model):
        answers = list(_answers(batches, answerer, views=clips * crops, shown=progress and rank == 0))
        if sharded:  # all processes have to compute as often
            most = -(-len(range(0, len(data), world)) * clips * crops // CLIPS)
            done = -(-len(answers) * clips * crops // CLIPS)
            blank = torch.zeros(1, spec.frames, len(spec.mean), *spec.image_size, dtype=torch.uint8)
            for _ in range(most - done):
                answerer(blank)
    skipped = tuple(dataset.skipped)
    if world > 1:
        answers, skipped = _gathered(answers, skipped)
    dataset.note_skipped(skipped, max_skipped=max_skipped)
    answers.sort(key=lambda answer: answer.index)
    labels = spec.labels or tuple(map(str, range(len(answers[0].probabilities) if answers else 0)))
    samples = getattr(dataset, "samples", None)
    return Evaluation(
        labels=labels,
        names=tuple(str(answer.index) if samples is None else samples[answer.index].name for answer in answers),
        targets=torch.tensor([answer.label for answer in answers], dtype=torch.int64),
        probabilities=torch.stack([answer.probabilities for answer in answers]) if answers else torch.empty(0, 0),
        skipped=tuple(record for record in skipped if record.counts),
        views=views,
    )


def _reader(own: ClipReader, spec: ClipSpec, clips: int, crops: int) -> ClipReader:
    """Return how test clips are read: as the caller has chosen for the dataset, else as the model was trained."""
    if own.frames != spec.frames:
        raise ConfigError(
            f"the dataset has clips of {own.frames} frames, the model reads {spec.frames}; make it with "
            f"num_frames={spec.frames}, or call aim.set_num_frames(model, {own.frames})"
        )
    transform: Any = own.transform
    transform = getattr(transform, "clip", transform)  # normalization is left to the device
    if not isinstance(transform, ClipTransform):
        transform = transform or ClipTransform(spec.image_size, crops=crops)
    else:
        transform = dataclasses.replace(transform, train=False, crops=crops, short_side=None)
    return dataclasses.replace(own, train=False, stride=own.stride or spec.stride, clips=clips, transform=transform)


class _Batches:
    """The batches of this process; videos that cannot be read are noted."""

    def __init__(
        self,
        data: VideoDataset | VideoStream,
        *,
        batch_size: int,
        workers: int,
        rank: int,
        world: int,
        max_skipped: float,
    ) -> None:
        self.data = data
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "num_workers": workers,
            "collate_fn": collate_clips,
            "worker_init_fn": one_thread,
            "generator": torch.Generator(),  # or it would draw from the caller's
        }
        # Over several processes each sees its own part of the skipped videos; all together are counted at the end.
        self._limit = max_skipped if world == 1 else None
        self._loader: DataLoader[Any]
        if isinstance(data, VideoStream):
            self.count: int | None = None
            self._loader = DataLoader(data.tracked(), **options)
        else:
            own = range(rank, len(data), world)
            self.count = len(own)
            self._loader = DataLoader(Subset(TrackedClips(data), own), **options)

    def __iter__(self) -> Iterator[Any]:
        before = 0
        for batch in self._loader:
            self.data.note_skipped(batch["skipped"], max_skipped=self._limit)
            if isinstance(self.data, VideoStream):  # whose videos have no index
                rank = dist.get_rank() if dist.is_initialized() else 0
                count = len(batch["label"])
                batch["index"] = torch.arange(before, before + count) + rank * 2**40
                before += count
            yield batch


def _answers(batches: _Batches, answerer: Answerer, *, views: int, shown: bool) -> Iterator[_Answer]:
    """Yield what the model says of each video, in their order, in passes of `CLIPS` clips."""
    waiting: list[Tensor] = []  # clips [T, 3, H, W]
    owners: list[tuple[int, int]] = []  # index and label, for each clip that has not been averaged
    rows: list[Tensor] = []
    done, last = 0, time.monotonic()

    def averaged() -> Iterator[_Answer]:
        while len(rows) >= views:
            index, label = owners[0]
            yield _Answer(index, label, torch.stack(rows[:views]).mean(0))
            del rows[:views], owners[:views]

    for batch in batches:
        video = batch["video"]
        if not len(batch["label"]):
            continue
        if video.ndim == 5:
            video = video[:, None]  # [B, V, T, 3, H, W]
        if video.shape[1] != views:
            raise ConfigError(
                f"the dataset's own transform gives {video.shape[1]} views of a video, expected {views}; leave "
                "transform out, or choose views that fit it"
            )
        for clips, index, label in zip(video, batch["index"].tolist(), batch["label"].tolist(), strict=True):
            waiting += clips.unbind()
            owners += [(index, label)] * views
        while len(waiting) >= CLIPS:
            rows += answerer(torch.stack(waiting[:CLIPS])).unbind()
            del waiting[:CLIPS]
            for answer in averaged():
                done += 1
                yield answer
        if shown and time.monotonic() - last > 5:
            last = time.monotonic()
            of = "" if batches.count is None else f" of {batches.count}"
            print(f"evaluated {done}{of} videos", file=sys.stderr, flush=True)
    if waiting:
        rows += answerer(torch.stack(waiting)).unbind()
        yield from averaged()


def _gathered(
    answers: list[_Answer], skipped: tuple[SkippedVideo, ...]
) -> tuple[list[_Answer], tuple[SkippedVideo, ...]]:
    """Return what all processes have found."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (answers, skipped))
    records = {record.name: record for _, part in found for record in part}
    return [answer for part, _ in found for answer in part], tuple(records.values())


def _require_labels(spec: ClipSpec, dataset: VideoDataset | VideoStream) -> None:
    if spec.labels is None or spec.labels == dataset.labels:
        return
    own, other = set(spec.labels), set(dataset.labels)
    if own == other:
        found = "they are in another order"
    else:
        found = f"only in the model: {shown(sorted(own - other))}, only in the dataset: {shown(sorted(other - own))}"
    raise ConfigError(
        f"the classes of the dataset are not those of the model: {found}; make it with "
        "labels=aim.clip_spec(model).labels"
    )
