"""Hold the benchmark harness to what it says."""

from __future__ import annotations

import json
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
