"""Hold the benchmark harness to what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.harness import results


def test_timing_summarises() -> None:
    timing = results.Timing.of([3.0, 1.0, 2.0])
    assert (timing.median, timing.repeats) == (2.0, 3)
    assert 1.0 <= timing.p10 <= timing.median <= timing.p90 <= 3.0


def test_measure_sets_up_every_run_and_drops_the_warmup() -> None:
    made: list[int] = []
    ran: list[int] = []

    def setup() -> int:
        made.append(len(made))
        return made[-1]

    seconds = results.measure(ran.append, setup=setup, repeats=3, warmup=2)
    assert len(seconds) == 3
    assert made == ran == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("seconds", "status"), [(0.1, 0), (0.3, 1), (0.2, 1)])
def test_report_writes_and_says_whether_the_target_is_met(
    seconds: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    timing = results.Timing.of([seconds, seconds])
    got = results.report("trial", "a trial", seconds=seconds, target=0.2, details={"all": timing})
    assert got == status
    written = json.loads((tmp_path / "trial.json").read_text())
    assert written["met"] == (status == 0)
    assert written["timings"]["all"]["median"] == seconds
    assert written["ran_on"]["versions"]["torch"]
    assert written["ran_on"]["commit"]


def test_a_target_has_either_limit() -> None:
    assert results.Target("speed", 2.0, 2.0).met and not results.Target("speed", 1.9, 2.0).met
    assert results.Target("share", 0.4, at_most=0.4).met and not results.Target("share", 0.41, at_most=0.4).met
    assert str(results.Target("share", 0.41, at_most=0.4)) == "share: 0.41, target at most 0.4: MISSED"


def test_the_commit_that_is_named_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIM_COMMIT", "abc+changes")
    assert results.commit() == "abc+changes"
    monkeypatch.delenv("AIM_COMMIT")
    assert results.commit() != "abc+changes"
    monkeypatch.setattr(results, "ROOT", tmp_path)  # no history
    assert results.commit() == "unknown"
