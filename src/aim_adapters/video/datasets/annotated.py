"""Videos whose classes stand in annotation files of a published dataset."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from aim_adapters.arguments import require_choice, shown
from aim_adapters.errors import ConfigError
from aim_adapters.video.datasets.csv_list import read_text
from aim_adapters.video.datasets.dataset import Listing, VideoDataset
from aim_adapters.video.datasets.files import content_of, user_path
from aim_adapters.video.decoding import Backend


class Entry(NamedTuple):
    """One video of an annotation file.

    Args:
        keys: Names that its file may have, without extension: the first that there is; ``folder/name`` tells files of
            one name in two folders apart.
        label: Name of its class.
    """

    keys: tuple[str, ...]
    label: str


class AnnotatedVideos(VideoDataset, ABC):
    """Videos of a published dataset, with its annotation files as they are.

    Files may lie in any folders below ``root`` and have any extension of a video. Those that are not there are counted,
    warned about, and listed in ``skipped``.

    Args:
        root: Folder with the videos.
        annotations: Annotation file, or the folder that holds the annotation files.
        num_frames: Frames of a clip.
        split: Which videos; the class says what there is.
        labels: Names of the classes in their order; by default the dataset's own order.
        stride: Distance between the frames of a clip; None: one frame of each of ``num_frames`` equal segments.
        transform: Called with the frames of a clip, uint8 ``[T, 3, h, w]``, such as ``transform_for(model)``.
        train: Sample at random, by the training rule; by default, if the transform is one for training.
        backend: Decoder, as in `open_video`.

    Raises:
        TypeError: What should be a path is none.
        ConfigError: A setting is invalid, an annotation file is none, or none of the videos exists.
    """

    splits: tuple[str, ...] | None = None

    def __init__(
        self,
        root: str | os.PathLike[str],
        annotations: str | os.PathLike[str],
        num_frames: int,
        *,
        split: str | None = None,
        labels: Sequence[str] | None = None,
        stride: int | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        train: bool | None = None,
        backend: Backend = "auto",
    ) -> None:
        folder, path = user_path("root", root), user_path("annotations", annotations)
        if self.splits is not None:
            require_choice("split", split, self.splits)
        entries, names = self.read(path, split)
        super().__init__(
            _listing(f"{type(self).__name__}({str(path)!r})", folder, entries),
            num_frames,
            labels=names if labels is None else labels,
            stride=stride,
            transform=transform,
            train=train,
            backend=backend,
        )

    @staticmethod
    @abstractmethod
    def read(annotations: Path, split: str | None) -> tuple[list[Entry], list[str] | None]:
        """Return the videos of a split, and the names of the classes in the dataset's order, where it has one.

        Args:
            annotations: Annotation file or folder.
            split: Which videos.

        Raises:
            ConfigError: The files cannot be read, or are of another kind.
        """


def _listing(what: str, root: Path, entries: Sequence[Entry]) -> Listing:
    """Return entries with the files that they name."""
    try:
        content = content_of(root)
    except OSError as error:
        raise ConfigError(f"{str(root)!r} cannot be read as a folder of videos: {error}") from error
    there: dict[str, str] = {}
    for path in content.videos + content.nested:
        stem = os.path.splitext(path)[0]  # noqa: PTH122 (a Path for each of many files takes several times as long)
        for key in (stem.rpartition("/")[2], "/".join(stem.rsplit("/", 2)[-2:])):
            there.setdefault(key, path)
    files = [next((there[key] for key in entry.keys if key in there), None) for entry in entries]
    return Listing(
        what,
        str(root),
        [file or entry.keys[0] for file, entry in zip(files, entries, strict=True)],
        [entry.label for entry in entries],
        gone={position for position, file in enumerate(files) if file is None},
    )


def read_json(path: Path) -> Any:
    """Return the content of an annotation file.

    Args:
        path: A JSON file.

    Raises:
        ConfigError: It is none.
    """
    try:
        return json.loads(read_text(path))
    except ValueError as error:  # also of its lines
        raise ConfigError(f"{str(path)!r} is no JSON file: {error}") from error


def read_records(path: Path, fields: Iterable[str]) -> list[dict[str, Any]]:
    """Return the records of an annotation file that is a list of them.

    Args:
        path: A JSON file.
        fields: What each record must have.

    Raises:
        ConfigError: It is another file.
    """
    records = read_json(path)
    if not isinstance(records, list) or not records:
        raise ConfigError(f"{str(path)!r} is no list of videos, it begins with {shown(records)[:80]}")
    for position, record in enumerate(records):
        lacking = [name for name in fields if not isinstance(record, dict) or name not in record]
        if lacking:
            raise ConfigError(f"{str(path)!r}, item {position}: no {' and no '.join(lacking)}, got {shown(record)}")
    return records


def read_pairs(path: Path, expected: str) -> list[tuple[str, str]]:
    """Return the lines of a text file that has two words in each.

    Args:
        path: The file.
        expected: What a line should be, for the message.

    Raises:
        ConfigError: It cannot be read, or a line is another one.
    """
    pairs = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        words = line.split()
        if len(words) == 2:
            pairs.append((words[0], words[1]))
        elif words:
            raise ConfigError(f"{str(path)!r}, line {number}: expected {expected}, got {line!r}")
    return pairs
