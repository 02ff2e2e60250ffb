"""Clips of a dataset that is not one of this package."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from aim_adapters.arguments import shown
from aim_adapters.errors import ConfigError
from aim_adapters.video.datasets import LoadedClip, NotesSkipped


class PlainClips(NotesSkipped, Dataset[LoadedClip]):
    """The clips of any dataset of ``(clip, label)``, for `collate_clips`.

    Args:
        dataset: A list, or a dataset with a length.

    Raises:
        TypeError: It is of another kind.
    """

    def __init__(self, dataset: Sequence[tuple[Tensor, int]] | Dataset[tuple[Tensor, int]]) -> None:
        is_map = isinstance(dataset, Dataset) and not isinstance(dataset, IterableDataset)
        if not isinstance(dataset, (list, tuple)) and not (is_map and hasattr(dataset, "__len__")):
            raise TypeError(
                "dataset must be a VideoFolder or another VideoDataset or VideoStream, or a dataset of (clip, label), "
                f"got {shown(dataset)}" + "; pass the loader's dataset" * isinstance(dataset, DataLoader)
            )
        self.dataset: Any = dataset
        self._start_list(type(dataset).__name__, [], len(self))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> LoadedClip:
        item = self.dataset[index]
        clip, label = item if isinstance(item, (list, tuple)) and len(item) == 2 else (None, None)
        if isinstance(label, Tensor) and label.ndim == 0 and not label.is_floating_point():
            label = label.item()
        if not isinstance(clip, Tensor) or clip.ndim not in (4, 5) or not isinstance(label, Integral):
            got = [f"{type(part).__name__} {list(getattr(part, 'shape', ()))}" for part in (clip, label)]
            raise ConfigError(
                f"item {index} of the dataset must be (clip, label), a clip [T, C, H, W] or its views [V, T, C, H, W] "
                f"and the index of a class, got {shown(item) if clip is None else ' and '.join(got)}"
            )
        return LoadedClip(clip, int(label), index, (), str(index))
