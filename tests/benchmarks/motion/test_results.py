"""Hold the files of results to what was written, and their reader to what is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.motion import results
from benchmarks.motion.results import ResultsError, Run, append_rows, load, read_rows

RUN: dict[str, Any] = {
    "experiment": "ladder", "variant": "order", "way": "joint", "backbone": "dinov2-small", "seed": 0, "frames": 8,
    "clips": 8208, "steps": 1400, "batch": 48, "lr": 1e-3, "accuracy": 80.25, "what": 91.0, "order": 75.0,
    "seconds": 21.5, "gpu": "Some GPU", "commit": "abc",
}  # fmt: skip
CLASS = {"variant": "order", "way": "joint", "seed": 0, "class": "pan right, zoom in", "accuracy": 70.0}
COST: dict[str, Any] = {
    "way": "joint", "backbone": "dinov2-small", "trained": 2_700_000, "total": 24_000_000, "step_ms": 31.5,
    "peak_mib": 2048.0, "inference_ms": 9.0, "file_kib": 10_500.0, "gpu": "Some GPU", "commit": "abc",
}  # fmt: skip


def write(folder: Path) -> Path:
    append_rows(folder / "runs.csv", results.COLUMNS, [RUN])
    append_rows(folder / "runs.csv", results.COLUMNS, [RUN | {"seed": 1, "accuracy": 82.25}])
    append_rows(folder / "classes.csv", results.CLASS_COLUMNS, [CLASS])
    append_rows(folder / "costs.csv", results.COST_COLUMNS, [COST])
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert load(tmp_path) == results.Results() and read_rows(tmp_path / "runs.csv") == []
    found = load(write(tmp_path))
    assert found.runs == (Run(**RUN), Run(**RUN | {"seed": 1, "accuracy": 82.25}))
    assert [*found.classes[0]] == [*CLASS.values()] and found.costs[0]._asdict() == COST
    assert [row["seed"] for row in read_rows(tmp_path / "runs.csv")] == ["0", "1"]


def test_seeds_are_summed_up() -> None:
    assert results.spread([80.25, 82.25]) == (81.25, pytest.approx(2**0.5)) and results.spread([80.0]) == (80.0, None)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("experiment,", "experiments,", r"unknown columns \['experiments'\], missing columns \['experiment'\]"),
        ("variant,way", "way,variant", "expected experiment,variant,way"),
        ("Some GPU,abc\n", "Some", "line 2: 15 cells, expected 16"),
        ("Some GPU,abc\n", "Some GPU,abc,more\n", "line 2: 17 cells, expected 16"),
        ("Some GPU,abc\n", "Some GPU,ab", "line 2: cut off"),
        ("Some GPU", '"Some GPU', "damaged"),
        ("Some GPU", "\udcff", "damaged"),
        (",80.25,", ",101,", "row 1, column accuracy: expected a share from 0 to 100, got '101'"),
        (",80.25,", ",nan,", "column accuracy"),
        (",8208,", ",8e3,", "column clips: expected a whole number, got '8e3'"),
        (",21.5,", ",,", "column seconds: expected a number, not negative, got ''"),
        (",0.001,", ",-1,", "column lr"),
    ],
)
def test_damage_is_named(tmp_path: Path, before: str, after: str, said: str) -> None:
    path = tmp_path / "runs.csv"
    append_rows(path, results.COLUMNS, [RUN])
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1
    path.write_bytes(text.replace(before, after).encode(errors="surrogateescape"))
    with pytest.raises(ResultsError, match=said):
        load(tmp_path)


def test_nothing_is_added_to_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    append_rows(path, results.COLUMNS, [RUN])
    cut = path.read_text(encoding="utf-8")[:-1]
    path.write_text(cut, encoding="utf-8")
    with pytest.raises(ResultsError, match="cut off"):
        append_rows(path, results.COLUMNS, [RUN | {"seed": 1}])
    assert path.read_text(encoding="utf-8") == cut
    path.write_text("", encoding="utf-8")
    with pytest.raises(ResultsError, match="missing columns"):
        read_rows(path)


@pytest.mark.parametrize("name", results.FILES)
def test_no_row_counts_twice(tmp_path: Path, name: str) -> None:
    path = write(tmp_path) / name
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([*lines, lines[1]]), encoding="utf-8")
    with pytest.raises(ResultsError, match=f"rows 1 and {len(lines)} are of the same"):
        load(tmp_path)
