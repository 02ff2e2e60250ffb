"""Hold the benchmark harness to what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.harness import Timing, results


@pytest.mark.parametrize(("seconds", "status"), [(0.1, 0), (0.3, 1), (0.2, 1)])
def test_report_writes_and_says_whether_the_target_is_met(
    seconds: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    timing = Timing.of([seconds, seconds])
    got = results.report("trial", "a trial", seconds=seconds, target=0.2, details={"all": timing})
    assert got == status
    written = json.loads((tmp_path / "trial.json").read_text())
    assert written["met"] == (status == 0)
    assert written["timings"]["all"]["median"] == seconds
    assert written["ran_on"]["versions"]["torch"]
    assert written["ran_on"]["commit"]


def test_a_command_is_one_that_anyone_can_run() -> None:
    argv = ["--sizes", "base-8", "--out", "somewhere", "--clips", "1"]
    assert results.command("train_step", argv) == "python -m benchmarks.timing.train_step --sizes base-8 --clips 1"
    assert results.command("train_step", []) == "python -m benchmarks.timing.train_step"


def test_a_record_is_a_line() -> None:
    rows = [{"name": "a", "seconds": 0.5}, {"name": "é", "seconds": [1.0, None]}]
    value = {"rows": rows, "errors": [1e-05, 2], "none": {}, "nested": [[], [[1]], ()], 3: True}
    text = results.dumps(value)
    assert json.loads(text) == json.loads(json.dumps(value))
    assert text.splitlines() == [
        "{",
        '  "rows": [',
        '    {"name": "a", "seconds": 0.5},',
        "    {",
        '      "name": "\\u00e9",',
        '      "seconds": [1.0, null]',
        "    }",
        "  ],",
        '  "errors": [1e-05, 2],',
        '  "none": {},',
        '  "nested": [',
        "    [],",
        "    [",
        "      [1]",
        "    ],",
        "    []",
        "  ],",
        '  "3": true',
        "}",
    ]


@pytest.mark.parametrize("path", sorted(results.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_results_are_as_they_are_written(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert results.dumps(json.loads(text)) + "\n" == text
    found = re.findall(r'"command": "([^"]*)"', text)
    assert found and all(command.startswith("python -m benchmarks.timing.") for command in found)
