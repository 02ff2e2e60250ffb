"""The files of results, ``runs.csv``, ``classes.csv``, ``costs.csv``: written row by row, read as records."""

from __future__ import annotations

import csv
import io
import math
import statistics
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parents[1] / "results" / "motion"
SHARES = ("accuracy", "what", "order")  # columns in percent


class ResultsError(ValueError):
    """A file of results that cannot be read as it was written; the message names the line and what to do."""


class Run(NamedTuple):
    """A row of ``runs.csv``: one way with one setting and seed, trained and tested.

    Attributes:
        experiment: Name of the experiment.
        variant: Of the task.
        way: Name of the way.
        backbone: Name of the image model.
        seed: Of what is new and of the order of the clips.
        frames: Frames of a clip.
        clips: Clips that were trained on.
        steps: Steps of the optimizer.
        batch: Clips of a step.
        lr: Learning rate.
        accuracy: Test clips whose class is right, in percent.
        what: Test clips that are right up to reversal in time, in percent.
        order: Of those whose class has a reverse, the ones in the right order, in percent; 50 is chance.
        seconds: Share of the GPU's time that the run took, in seconds.
        gpu: Name of the GPU.
        commit: Of the repository.
    """

    experiment: str
    variant: str
    way: str
    backbone: str
    seed: int
    frames: int
    clips: int
    steps: int
    batch: int
    lr: float
    accuracy: float
    what: float
    order: float
    seconds: float
    gpu: str
    commit: str

    @property
    def key(self) -> tuple[Any, ...]:
        """Return what tells it from all other runs, as `Job.key` does."""
        return self[:7]


class ClassScore(NamedTuple):
    """A row of ``classes.csv``: test clips of a class that are right, in percent."""

    variant: str
    way: str
    seed: int
    class_: str
    accuracy: float

    @property
    def key(self) -> tuple[Any, ...]:
        """Return what tells it from all others."""
        return self[:-1]


class Costs(NamedTuple):
    """A row of ``costs.csv``: what a way costs, in the units of `benchmarks.motion.costs.Cost`."""

    way: str
    backbone: str
    trained: float
    total: float
    step_ms: float
    peak_mib: float
    inference_ms: float
    file_kib: float
    gpu: str
    commit: str

    @property
    def key(self) -> tuple[Any, ...]:
        """Return what tells it from all others."""
        return self[:2]


def _columns(record: type[Any]) -> tuple[str, ...]:
    return tuple(name.rstrip("_") for name in record._fields)


FILES: dict[str, type[Any]] = {"runs.csv": Run, "classes.csv": ClassScore, "costs.csv": Costs}
COLUMNS, CLASS_COLUMNS, COST_COLUMNS = map(_columns, FILES.values())


class Results(NamedTuple):
    """All rows of a folder, in the order of the files."""

    runs: tuple[Run, ...] = ()
    classes: tuple[ClassScore, ...] = ()
    costs: tuple[Costs, ...] = ()


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of one of the files, each cell as it stands; none where there is no file.

    Raises:
        ResultsError: It is not text, its columns are others, or a row has not as many cells as there are columns.
    """
    if not path.is_file():
        return []
    columns = _columns(FILES[path.name])
    try:
        text = path.read_text(encoding="utf-8")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        numbered = [(reader.line_num, cells) for cells in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ResultsError(f"{path}: damaged ({error}); restore the file as it was committed") from error
    header = tuple(numbered[0][1]) if numbered else ()
    if header != columns:
        unknown, absent = ([*dict.fromkeys(these)] for these in _differences(header, columns))
        raise ResultsError(
            f"{path}: unknown columns {unknown}, missing columns {absent}; expected {','.join(columns)}: rows of "
            "another version of the benchmark belong in a folder of their own"
        )
    for line, cells in numbered[1:]:
        if len(cells) != len(columns):
            raise ResultsError(
                f"{path}, line {line}: {len(cells)} cells, expected {len(columns)}; delete the line, and run again "
                "what it was the result of"
            )
    if not text.endswith("\n"):
        raise ResultsError(f"{path}, line {numbered[-1][0]}: cut off; delete the line, and run it again")
    return [dict(zip(columns, cells, strict=True)) for _, cells in numbered[1:]]


def _differences(found: Sequence[str], expected: Sequence[str]) -> tuple[list[str], list[str]]:
    return [name for name in found if name not in expected], [name for name in expected if name not in found]


def append_rows(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows to one of the files, which is made where it is missing.

    Raises:
        ResultsError: The file that is there cannot be read: nothing is added to it.
    """
    read_rows(path)
    new = not path.is_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def load(folder: Path = FOLDER) -> Results:
    """Return the rows of the files of a folder as records; none of what is not there.

    Raises:
        ResultsError: As for `read_rows`; or a cell is no number of its column, or a row is there twice.
    """
    return Results(*(tuple(_read(folder / name)) for name in FILES))


def _read(path: Path) -> list[Any]:
    record = FILES[path.name]
    kinds = typing.get_type_hints(record)
    rows = [
        record(*(_parsed(cell, kinds[field], f"{path}, row {number}, column {column}", column in SHARES)
                 for field, (column, cell) in zip(record._fields, row.items(), strict=True)))
        for number, row in enumerate(read_rows(path), 1)
    ]  # fmt: skip
    seen: dict[tuple[Any, ...], int] = {}
    for number, row in enumerate(rows, 1):
        if row.key in seen:
            raise ResultsError(f"{path}: rows {seen[row.key]} and {number} are of the same, {row.key}; delete one")
        seen[row.key] = number
    return rows


def _parsed(cell: str, kind: Any, place: str, share: bool) -> Any:
    if kind is str:
        return cell
    try:
        number = int(cell) if kind is int else float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0 or (share and number > 100):
        what = "a share from 0 to 100" if share else "a whole number" if kind is int else "a number, not negative"
        raise ResultsError(f"{place}: expected {what}, got {cell!r}; delete the row, and run it again")
    return number


class Spread(NamedTuple):
    """Mean and standard deviation over seeds; of one seed there is no deviation."""

    mean: float
    sd: float | None


def spread(values: Sequence[float]) -> Spread:
    """Return the mean of values and their standard deviation."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)
