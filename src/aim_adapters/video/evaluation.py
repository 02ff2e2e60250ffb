"""The accuracy of a model on a test set, on one process or on several."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, Subset

from aim_adapters.arguments import require_flags, require_integer, require_number, shown
from aim_adapters.clip_spec import ClipSpec
from aim_adapters.core import DISTRIBUTED_CLASSES, is_sharded
from aim_adapters.errors import ConfigError, StateError
from aim_adapters.video.answers import CLIPS, Answerer, answering, parse_views, spec_of
from aim_adapters.video.blocks import Blocks, BlockVideo, TestData, place
from aim_adapters.video.clips import ClipReader
from aim_adapters.video.datasets import SkippedVideo, VideoDataset, VideoStream
from aim_adapters.video.normalization import Normalize
from aim_adapters.video.plain import PlainClips
from aim_adapters.video.scores import Evaluation
from aim_adapters.video.transforms import ClipTransform, ModelTransform


class _Part(NamedTuple):
    """What one process has found.

    Attributes:
        videos: Index, name and label of each video.
        probabilities: Of each class, float64 ``[S, K]``.
        skipped: Videos that could not be read.
    """

    videos: list[tuple[int, str, int]]
    probabilities: Tensor
    skipped: tuple[SkippedVideo, ...]


def evaluate(
    model: nn.Module,
    dataset: VideoDataset | VideoStream | Dataset[tuple[Tensor, int]] | Sequence[tuple[Tensor, int]],
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

    Where several processes run (``torchrun``, ``accelerate launch``), all of them have to call this. Each reads its
    share of the videos, and all return the whole evaluation. Every video is counted once.

    A video always goes through the model at the same place in a pass, of eight clips, that holds the same other videos.
    So neither ``batch_size`` nor the number of processes changes a digit of the probabilities, where products are
    computed in the same way each time: by devices of one kind, or on the CPU by as many threads. Not so for streams,
    which have another order on each number of processes.

    Args:
        model: A wrapped model; or another module that maps ``[B, T, C, H, W]`` to ``[B, K]``, with ``spec``. It is left
            in the mode that it was in.
        dataset: The videos. A transform or stride that it was made with is used, and clips that a transform of your own
            has made floats are not normalized again; else the model's `clip_spec` says. Or any dataset of
            ``(clip, label)``, a clip being ``[T, C, H, W]`` or ``[V, T, C, H, W]``, with the ``views`` that it has.
        views: Clips in time x crops in space, such as ``"3x1"`` for Kinetics and ``"1x3"`` for Something-Something.
        batch_size: Videos that a worker decodes as one batch.
        workers: Processes that decode; by default as many as there are cores for each process.
        device: Where the model is moved before; by default it stays where it is.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``; by default as the caller's autocast says.
        spec: What the model reads, if it does not say so itself.
        max_skipped: Share of the videos that may be missing or broken.
        progress: Show on standard error how far it is.

    Returns:
        The evaluation: accuracies, confusion, predictions, videos that were left out.

    Raises:
        TypeError: ``model`` is no module, or ``dataset`` is of another kind.
        ConfigError: A setting is invalid, the classes of model and dataset differ, a clip is not what the model reads,
            or there is no video.
        StateError: The model returns no classes, others than have names, or values that are not finite.
        VideoError: More videos than ``max_skipped`` are missing or cannot be read.
    """
    spec = spec_of(model, spec)
    clips, crops = parse_views(views)
    batch_size = require_integer("batch_size", batch_size, low=1)
    if workers is not None:
        workers = require_integer("workers", workers, low=0, high=1024)
    max_skipped = require_number("max_skipped", max_skipped, low=0.0)
    require_flags(progress=progress)
    data = _test_data(dataset, spec, clips, crops)
    if not isinstance(data, PlainClips):
        _require_labels(spec, data)
        spec = dataclasses.replace(spec, labels=data.labels)
    if isinstance(model, DistributedDataParallel):
        model = model.module  # it would send buffers to all processes in each forward, as if all ran as often
    even = _runs_together(model)
    if even and isinstance(data, VideoStream):
        raise ConfigError("a sharded model is evaluated on a dataset, not on a stream, whose parts differ in length")
    answerer = Answerer(model, spec, device=device, precision=precision, normalize=_normalization(dataset))
    blocks = Blocks(
        data, answerer, views=clips * crops, batch_size=batch_size, workers=workers, max_skipped=max_skipped, even=even
    )
    with answering(model):
        part = _answered(blocks, answerer, views=clips * crops, even=even, shown=progress and place()[0] == 0)
    part = part._replace(skipped=tuple(data.skipped))
    if place()[1] > 1:
        part = _gathered(part, answerer.device)
    data.note_skipped(part.skipped, max_skipped=max_skipped)
    return _scored(part, spec.labels, views)


def _normalization(dataset: Any) -> Normalize | None:
    """Return the normalization that a dataset was made with, by `transform_for`."""
    if isinstance(dataset, Subset):
        dataset = dataset.dataset
    transform = getattr(getattr(dataset, "reader", None), "transform", None)
    return transform.normalize if isinstance(transform, ModelTransform) else None


def _test_data(dataset: Any, spec: ClipSpec, clips: int, crops: int) -> TestData:
    """Return a dataset that reads test clips: as the caller has chosen for it, else as the model was trained."""
    if isinstance(dataset, Subset) and isinstance(dataset.dataset, VideoDataset):  # of random_split, for instance
        dataset = dataset.dataset.subset(dataset.indices)
    if not isinstance(dataset, (VideoDataset, VideoStream)):
        return PlainClips(dataset)
    own: ClipReader = dataset.reader
    if own.frames != spec.frames:
        raise ConfigError(
            f"the dataset has clips of {own.frames} frames, the model reads {spec.frames}; make it with "
            f"num_frames={spec.frames}, or call aim.set_num_frames(model, {own.frames})"
        )
    transform: Any = own.transform
    transform = getattr(transform, "clip", transform)  # normalization is left to the device
    if isinstance(transform, ClipTransform):
        short_side = None if transform.train else transform.short_side
        transform = dataclasses.replace(transform, train=False, crops=crops, short_side=short_side)
    elif transform is None:
        transform = ClipTransform(spec.image_size, crops=crops)
    stride = own.stride or spec.stride
    return dataset.with_reader(dataclasses.replace(own, train=False, stride=stride, clips=clips, transform=transform))


def _answered(blocks: Blocks, answerer: Answerer, *, views: int, even: bool, shown: bool) -> _Part:
    """Return what the model says of each video of this process."""
    videos: list[tuple[int, str, int]] = []
    parts: list[Tensor] = []
    waiting: tuple[list[BlockVideo | None], Tensor] | None = None
    last = time.monotonic()

    def fetch(block: list[BlockVideo | None], rows: Tensor) -> None:
        rows = rows.cpu()
        for video, row in zip(block, rows, strict=False):
            if video is not None and not row.isfinite().all():
                raise StateError(
                    f"the model returns values that are not finite for {video.name}; it has diverged in training, or "
                    'overflows: pass precision="bf16" instead of "fp16"'
                )
        kept = [place for place, video in enumerate(block) if video is not None]
        videos.extend(video[:3] for video in block if video is not None)
        parts.append(rows[kept])

    for block in blocks:
        rows = _probabilities(answerer, block, views=views, even=even)
        if waiting is not None:  # the one before, while the device computes
            fetch(*waiting)
        waiting = None if rows is None else (block, rows)
        if shown and time.monotonic() - last > 5:
            last = time.monotonic()
            of = "" if blocks.count is None else f" of {blocks.count}"
            print(f"evaluated {len(videos)}{of} videos", file=sys.stderr, flush=True)
    if waiting is not None:
        fetch(*waiting)
    return _Part(videos, torch.cat(parts) if parts else torch.empty(0, 0), ())


def _probabilities(answerer: Answerer, block: list[BlockVideo | None], *, views: int, even: bool) -> Tensor | None:
    """Return the probabilities for the videos of a block in passes of `CLIPS` clips, ``[n, K]``, n <= `CLIPS`.

    Without ``even``, passes after the last video are left out.
    """
    real = [place for place, video in enumerate(block) if video is not None]
    dtype = next((video.clips.dtype for video in block if video is not None), torch.uint8)
    blank = torch.zeros(answerer.shape, dtype=dtype)
    clips = [clip for video in block for clip in ([blank] * views if video is None else video.clips)]
    count = CLIPS if even else max(real, default=-1) + 1
    passes = [answerer(clips[start : start + CLIPS]) for start in range(0, count * views, CLIPS)]
    return torch.cat(passes)[: count * views].unflatten(0, (count, views)).mean(1) if real else None


def _gathered(part: _Part, device: torch.device) -> _Part:
    """Return what all processes have found."""
    found: list[Any] = [None] * dist.get_world_size()
    # NCCL sends from the current device.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        dist.all_gather_object(found, part)
    return _Part(
        [video for each in found for video in each.videos],
        torch.cat([each.probabilities for each in found if each.videos] or [torch.empty(0, 0)]),
        tuple({record.name: record for each in found for record in each.skipped}.values()),
    )


def _scored(part: _Part, labels: tuple[str, ...] | None, views: str) -> Evaluation:
    """Return the evaluation of videos in the order of their dataset; those of a stream by name."""
    order = sorted(range(len(part.videos)), key=lambda row: part.videos[row][:2])
    videos = [part.videos[row] for row in order]
    classes = part.probabilities.shape[1]
    for _, name, label in videos:
        if not 0 <= label < classes:
            raise ConfigError(f"video {name} has label {label}, and the model has {classes} classes, counted from 0")
    return Evaluation(
        labels=labels or tuple(map(str, range(classes))),
        names=tuple(name for _, name, _ in videos),
        targets=torch.tensor([label for *_, label in videos], dtype=torch.int64),
        probabilities=part.probabilities[order],
        skipped=tuple(record for record in part.skipped if record.counts),
        views=views,
    )


def _runs_together(model: nn.Module) -> bool:
    """Return whether a forward has to run on all processes: parts of the model are sharded over them."""
    return any(map(is_sharded, model.parameters())) or any(
        DISTRIBUTED_CLASSES & {cls.__name__ for cls in type(module).__mro__} for module in model.modules()
    )


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
