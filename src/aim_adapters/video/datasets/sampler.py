"""The order in which clips are drawn, and the seed of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from aim_adapters.arguments import require_flags, require_integer

_MOST = 2**63 - 1


def clip_seed(seed: int, epoch: int, index: int | str) -> int:
    """Return the seed of one clip: it depends on nothing else, such as on worker or rank.

    Args:
        seed: Seed of the run.
        epoch: Epoch.
        index: Index of the video, or its name.
    """
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # what a torch.Generator takes


class ClipSampler(Sampler[tuple[int, int]]):
    """The keys ``(index, seed)`` of one epoch, split over processes without overlap, from any position on.

    The epoch's order is one and the same in all processes; process ``rank`` takes every ``world``-th of it. So the
    clips of one step over all processes are the same for any number of processes, if their batches add up to the same
    number.

    Args:
        length: Number of videos.
        seed: Seed of the run.
        epoch: Epoch; `set_epoch` changes it.
        shuffle: Whether videos come in random order.
        rank: Index of this process.
        world: Number of processes.
        start: Number of clips of this epoch that all processes together have consumed before.

    Raises:
        ConfigError: An argument is of another kind, or out of range.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
    ) -> None:
        self.length = require_integer("length", length, low=0)
        self.seed = require_integer("seed", seed, low=-_MOST, high=_MOST)
        require_flags(shuffle=shuffle)
        self.shuffle = shuffle
        self.world = require_integer("world", world, low=1)
        self.rank = require_integer("rank", rank, low=0, high=self.world - 1)
        self.set_epoch(epoch, start=start)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that is drawn next.

        Args:
            epoch: Epoch.
            start: Number of its clips that all processes together have consumed before.

        Raises:
            ConfigError: An argument is of another kind, or out of range.
        """
        self.epoch = require_integer("epoch", epoch, low=0)
        self.start = require_integer("start", start, low=0, high=self.length)

    def __len__(self) -> int:
        return len(range(self.start + self.rank, self.length, self.world))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(clip_seed(self.seed, self.epoch, -1))
            order = torch.randperm(self.length, generator=generator)
        else:
            order = torch.arange(self.length)
        epoch = self.epoch
        for index in order[self.start + self.rank :: self.world]:
            yield int(index), clip_seed(self.seed, epoch, int(index))
