"""What a model's answers on a test set come to."""

from __future__ import annotations

import csv
import html
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aim_adapters.errors import ConfigError
from aim_adapters.storage import replaced_when_whole
from aim_adapters.table import Table
from aim_adapters.video.datasets import SkippedVideo, user_path


class ClassScore(NamedTuple):
    """How well one class is recognized.

    Attributes:
        label: Name of the class.
        videos: Videos of it.
        accuracy: Share of them that were recognized, in [0, 1]; NaN without any.
    """

    label: str
    videos: int
    accuracy: float


class _Line(NamedTuple):
    """A class as a summary shows it."""

    label: str
    videos: int | str
    accuracy: str


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """Accuracy of a model on a test set; it shows itself as a summary, in a terminal and in a notebook.

    Args:
        labels: Names of the classes.
        names: Names of the videos.
        targets: Classes of the videos, int64 ``[S]``.
        probabilities: Of each class, averaged over the views of a video, float64 ``[S, K]``.
        skipped: Videos that could not be read.
        views: Clips in time x crops in space.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]
    targets: Tensor
    probabilities: Tensor
    skipped: tuple[SkippedVideo, ...]
    views: str

    def __post_init__(self) -> None:
        """Refuse an evaluation of nothing."""
        if not len(self.targets):
            raise ConfigError(f"no video of the dataset was evaluated; {len(self.skipped)} could not be read")

    @property
    def count(self) -> int:
        """Videos that were evaluated."""
        return len(self.targets)

    @property
    def top1(self) -> float:
        """Share of videos whose class got the highest probability, in [0, 1]."""
        return self._top(1)

    @property
    def top5(self) -> float | None:
        """Share of videos whose class is among the five most probable; None if there are no more than five classes."""
        return self._top(5) if len(self.labels) > 5 else None

    @property
    def answers(self) -> Tensor:
        """The most probable class of each video, int64 ``[S]``; of equal ones the first."""
        return self._ranked()[:, 0]

    @property
    def confusion(self) -> Tensor:
        """Numbers of videos by class (rows) and answer (columns), int64 ``[K, K]``."""
        size = len(self.labels)
        return torch.bincount(self.targets * size + self.answers, minlength=size * size).view(size, size)

    @property
    def per_class(self) -> Table[ClassScore]:
        """How well each class is recognized."""
        confusion = self.confusion
        videos = confusion.sum(1).tolist()
        right = confusion.diagonal().tolist()
        return Table(
            ClassScore(label, count, hits / count if count else math.nan)
            for label, count, hits in zip(self.labels, videos, right, strict=True)
        )

    @property
    def mean_class(self) -> float:
        """Mean of the accuracies of all classes that have videos, in [0, 1]."""
        scores = [row.accuracy for row in self.per_class if row.videos]
        return math.fsum(scores) / len(scores)

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """A row for each video: name, label, predicted, and the probability of each class by its name."""
        answers = self.answers.tolist()
        return [
            {
                "name": name,
                "label": self.labels[target],
                "predicted": self.labels[answer],
                "probabilities": dict(zip(self.labels, row, strict=True)),
            }
            for name, target, answer, row in zip(
                self.names, self.targets.tolist(), answers, self.probabilities.tolist(), strict=True
            )
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON-ready values, without the predictions."""
        return {
            "count": self.count,
            "views": self.views,
            "top1": self.top1,
            "top5": self.top5,
            "mean_class": self.mean_class,
            "per_class": {row.label: row.accuracy if row.videos else None for row in self.per_class},
            "confusion": self.confusion.tolist(),
            "skipped": [{"name": record.name, "reason": record.reason} for record in self.skipped],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the predictions: a row for each video with its name, label and answer, and a column for each class.

        A file that is there is replaced when the new one is whole.

        Args:
            path: A file that ends in ``.csv`` or ``.parquet``; folders that do not exist are made.

        Raises:
            TypeError: It is no path.
            ConfigError: It ends in something else.
            ImportError: A Parquet file needs pyarrow.
            OSError: It cannot be written.
        """
        file = user_path("path", path)
        write = _WRITERS.get(file.suffix.lower())
        if write is None:
            raise ConfigError(f"path must end in .csv or .parquet, got {str(file)!r}")
        columns: dict[str, Sequence[Any]] = {
            # Names of files need not be UTF-8, and text is.
            "name": [os.fsencode(name).decode(errors="replace") for name in self.names],
            "label": [self.labels[index] for index in self.targets.tolist()],
            "predicted": [self.labels[index] for index in self.answers.tolist()],
        }
        columns |= {
            f"probability of {label}": self.probabilities[:, index].tolist() for index, label in enumerate(self.labels)
        }
        with replaced_when_whole(file) as staged:
            write(staged, columns)

    def __repr__(self) -> str:
        """Return a summary."""
        return f"{self._headline()}\n{self._classes()!r}"

    def _repr_html_(self) -> str:
        """Return a summary as HTML, which notebooks show."""
        return f"<p>{html.escape(self._headline())}</p>{self._classes()._repr_html_()}"

    def _headline(self) -> str:
        top5 = "" if self.top5 is None else f"top-5 {self.top5:.1%}, "
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return (
            f"top-1 {self.top1:.1%}, {top5}mean of classes {self.mean_class:.1%} "
            f"({self.count} videos, {self.views} views{skipped})"
        )

    def _classes(self) -> Table[_Line]:
        """Return the classes that have videos, the worst first; of many the first and the last five."""
        scores = sorted((row for row in self.per_class if row.videos), key=lambda row: row.accuracy)
        lines = [_Line(row.label, row.videos, f"{row.accuracy:.1%}") for row in scores]
        return Table(lines if len(lines) <= 10 else [*lines[:5], _Line("…", "", ""), *lines[-5:]])

    def _ranked(self) -> Tensor:
        # A stable order: of equal probabilities the first class wins, on every machine.
        return self.probabilities.argsort(dim=1, descending=True, stable=True)

    def _top(self, count: int) -> float:
        hits = (self._ranked()[:, :count] == self.targets[:, None]).any(1)
        return int(hits.sum()) / self.count


def _write_csv(file: Path, columns: dict[str, Sequence[Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as opened:
        rows = csv.writer(opened)
        rows.writerow(columns)
        rows.writerows(zip(*columns.values(), strict=True))


def _write_parquet(file: Path, columns: dict[str, Sequence[Any]]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("writing .parquet needs pyarrow: pip install pyarrow; or write .csv") from error
    parquet.write_table(pyarrow.table(columns), file)


_WRITERS = {".csv": _write_csv, ".parquet": _write_parquet}
