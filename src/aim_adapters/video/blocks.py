"""The videos of a test set in blocks that are the same on any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from aim_adapters.errors import ConfigError
from aim_adapters.video.answers import CLIPS, Answerer
from aim_adapters.video.datasets import (
    ClipBatch,
    TrackedClips,
    VideoDataset,
    VideoStream,
    collate_clips,
    default_workers,
    one_thread,
)
from aim_adapters.video.plain import PlainClips

TestData = VideoDataset | VideoStream | PlainClips


class BlockVideo(NamedTuple):
    """A video that was read.

    Attributes:
        position: Its index in the dataset; -1 in a stream.
        name: Its name.
        label: Index of its class.
        clips: Its views, ``[V, T, C, H, W]``.
    """

    position: int
    name: str
    label: int
    clips: Tensor


class Blocks:
    """The videos of this process in blocks of `CLIPS`: each has the same videos however many processes there are.

    None stands for a video that could not be read, which is noted, and fills up the last block.

    Args:
        data: The videos.
        answerer: What they are read for.
        views: Views of a video.
        batch_size: Videos that are decoded as one batch.
        workers: Processes that decode, or None.
        max_skipped: Share of the videos that may be missing or broken.
        even: Give all processes as many blocks, if need be without videos.
    """

    def __init__(
        self,
        data: TestData,
        answerer: Answerer,
        *,
        views: int,
        batch_size: int,
        workers: int | None,
        max_skipped: float,
        even: bool,
    ) -> None:
        rank, world = place()
        self._data, self._shape, self._views, self._batch_size = data, answerer.shape, views, batch_size
        # Over several processes each sees its own part of the skipped videos; all together are counted at the end.
        self._limit = max_skipped if world == 1 else None
        self._own: list[int] | None = None
        self._blank = 0
        loaded: Any
        if isinstance(data, VideoStream):
            loaded = data.tracked()
        else:
            blocks = -(-len(data) // CLIPS)
            mine = range(rank, blocks, world)
            self._own = [i for block in mine for i in range(len(data))[block * CLIPS : (block + 1) * CLIPS]]
            self._blank = -(-blocks // world) - len(mine) if even else 0
            loaded = Subset(data if isinstance(data, PlainClips) else TrackedClips(data), self._own)
        if workers is None:
            workers = default_workers()
            if self._own is not None:
                workers = min(workers, -(-len(self._own) // batch_size))
        self._loader: DataLoader[Any] = DataLoader(
            loaded,
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=collate_clips,
            pin_memory=answerer.device.type == "cuda",
            worker_init_fn=one_thread,
            generator=torch.Generator(),  # or it would draw from the caller's
        )

    @property
    def count(self) -> int | None:
        """Number of videos of this process, if it is known."""
        return None if self._own is None else len(self._own)

    def __iter__(self) -> Iterator[list[BlockVideo | None]]:
        videos = self._videos()
        while block := list(islice(videos, CLIPS)):
            yield block + [None] * (CLIPS - len(block))
        for _ in range(self._blank):
            yield [None] * CLIPS

    def _videos(self) -> Iterator[BlockVideo | None]:
        own = iter(self._own or ())
        for batch in self._loader:
            self._data.note_skipped(batch["skipped"], max_skipped=self._limit)
            rows = zip(
                batch["index"].tolist(), batch["name"], batch["label"].tolist(), self._viewed(batch), strict=True
            )
            read = [BlockVideo(*row) for row in rows]
            if self._own is None:
                yield from read
            else:
                found = {video.position: video for video in read}
                yield from map(found.get, islice(own, self._batch_size))

    def _viewed(self, batch: ClipBatch) -> Tensor:
        """Return the clips of a batch, ``[B, V, T, C, H, W]``."""
        video = batch["video"]
        if not len(video):
            return video
        video = video[:, None] if video.ndim == 5 else video
        if video.shape[1] != self._views:
            fix = "pass views='1x1'" if video.shape[1] == 1 else "choose views that fit them"
            raise ConfigError(
                f"the dataset itself gives {video.shape[1]} views of a video, expected {self._views}; {fix}, or leave "
                "its transform out"
            )
        if tuple(video.shape[2:]) != self._shape or not (video.dtype == torch.uint8 or video.is_floating_point()):
            raise ConfigError(
                f"the clips of the dataset are {video.dtype} {list(video.shape[2:])}, expected torch.uint8 "
                f"{list(self._shape)}; leave its transform out, or pass one that returns this; for a model that reads "
                "another size, pass spec=dataclasses.replace(aim.clip_spec(model), image_size=(H, W))"
            )
        return video


def place() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
