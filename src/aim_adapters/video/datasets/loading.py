"""Batches of clips from worker processes, with a record of what could not be read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from aim_adapters.errors import ConfigError
from aim_adapters.video.datasets.dataset import LoadedClip, VideoDataset
from aim_adapters.video.datasets.samples import SkippedVideo

# Processes that decode beside one that trains: more than this many cost memory and win nothing.
_MOST_WORKERS = 16


class ClipBatch(TypedDict):
    """A batch of clips.

    Attributes:
        video: ``[B, T, C, H, W]``, or ``[B, V, T, C, H, W]`` for several views; ``[0]`` if no video could be read.
        label: int64 ``[B]``.
        index: int64 ``[B]``, indices of the videos; -1 in a stream.
        name: Names of the videos.
        skipped: Videos that could not be read.
    """

    video: Tensor
    label: Tensor
    index: Tensor
    name: list[str]
    skipped: list[SkippedVideo]


class TrackedClips(Dataset[LoadedClip]):
    """The clips of a dataset with a record of the videos that could not be read, for `collate_clips`.

    Args:
        dataset: A dataset.
    """

    def __init__(self, dataset: VideoDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> LoadedClip:
        return self.dataset.load(key)


def collate_clips(items: Sequence[LoadedClip]) -> ClipBatch:
    """Return a batch of the clips that could be read: a ``collate_fn`` for a DataLoader over `TrackedClips`.

    Call ``dataset.note_skipped(batch["skipped"])`` for each batch, so that the dataset lists what workers have skipped.

    Args:
        items: Items of `TrackedClips`.

    Raises:
        ConfigError: The clips have different shapes.
    """
    read = [item for item in items if item.clip is not None]
    shapes = {tuple(item.clip.shape) for item in read if item.clip is not None}
    if len(shapes) > 1:
        raise ConfigError(
            f"the clips of a batch must have one shape, got {' and '.join(map(str, sorted(shapes)))}; pass "
            "transform=transform_for(model) to the dataset"
        )
    return ClipBatch(
        # In a worker process this stacks into shared memory.
        video=default_collate([item.clip for item in read]) if read else torch.empty(0, dtype=torch.uint8),
        label=torch.tensor([item.label for item in read], dtype=torch.int64),
        index=torch.tensor([item.index for item in read], dtype=torch.int64),
        name=[item.name for item in read],
        skipped=[record for item in items for record in item.skipped],
    )


def default_workers() -> int:
    """Return how many processes decode for this one: the cores that are left, shared with its neighbors."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(max((cores - local) // local, 1), _MOST_WORKERS)


def one_thread(worker: int) -> None:
    """Keep a worker to one core, as there is one worker for each: a ``worker_init_fn``.

    Args:
        worker: Its number.
    """
    torch.set_num_threads(1)
