"""Run the benchmark of few clips on a CPU, on a tiny model: both tasks are timed, kept and printed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.timing import inference, step_command, train_step
from benchmarks.timing import small_batches as benchmark
from benchmarks.timing.steps import StepEffort
from tests.benchmarks.tiny import TINY

pytest.importorskip("triton")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(benchmark.torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(train_step.SIZES, step_command.SMALL, replace(TINY, dtype="float32"))
    effort = StepEffort(warmup=1, rounds=1, seconds=0, bounds=(2, 2), arithmetic=False)
    monkeypatch.setattr(step_command, "StepEffort", lambda **_: effort)
    benchmark.main(["--out", str(tmp_path), "--clips", "1", "2"])
    for module in (train_step, inference):
        tables = json.loads((tmp_path / f"{module.TASK.name}.json").read_text())["tables"]
        assert sorted(table["size"]["clips"] for table in tables.values()) == [1, 2]
        assert all(list(table["peers"]) == list(benchmark.PEERS[:-1]) for table in tables.values())
        assert all("--brief" in table["command"] and table["complete"] for table in tables.values())
    printed = capsys.readouterr().out
    assert printed.count("training step, ms; clips:          1        2") == 1 and "inference, ms" in printed


def test_a_peer_that_failed_has_no_time() -> None:
    tables = [{"aim/eager": {"median": 0.0125}}, {"aim/eager": {}}, {}]
    assert benchmark.line("aim/eager", tables).split() == ["aim/eager", "12.50", "nan", "nan"]
