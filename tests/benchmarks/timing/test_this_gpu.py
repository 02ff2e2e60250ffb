"""Run the benchmark for users' GPUs on a CPU, on tiny models: the table holds times, and what is wrong is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.harness import Cpu, Effort
from benchmarks.timing import spatial_attention, temporal_attention
from benchmarks.timing import this_gpu as benchmark
from tests.benchmarks.tiny import TINY

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    few: dict[str, Any] = {"heads": 1, "dim": 16, "dtype": "float16", "peers": ("triton",)}
    monkeypatch.setattr(benchmark, "TEMPORAL", (temporal_attention.Case("here", 2, tokens=3, images=2, **few),))
    monkeypatch.setattr(benchmark, "SPATIAL", (spatial_attention.Case(4, frames=1, **few),))
    monkeypatch.setattr(benchmark, "EFFORT", Effort(2, 1e-6, 2, copy_bytes=(2**12,), side=16, warmup=0.0))
    monkeypatch.setattr(benchmark, "SIZE", replace(TINY, dtype="float32"))
    monkeypatch.setattr(benchmark, "STEPS", 2)
    monkeypatch.setattr(benchmark, "WARMUP", 1)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--device", "cpu", "--clips", "1"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].startswith("### ") and "torch " in lines[2] and "commit" in lines[2]
    starts = ["over 2 frames", "over 2 frames", "over 4 tokens", "over 4 tokens", "train_step | 1", "inference | 1"]
    found = [line for line in lines if " ms" in line]
    assert [line[2:].startswith(start) for line, start in zip(found, starts, strict=True)] == [True] * len(starts)
    assert benchmark.ISSUES in shown.err


def test_what_does_not_fit_or_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    def broken(*_: object) -> None:
        raise RuntimeError("no kernel\nfor this")

    task = benchmark.TASKS[1]
    assert benchmark._time(Cpu(), replace(task, prepare=full), benchmark.SIZE, "plain") == "does not fit"
    assert benchmark._time(Cpu(), replace(task, prepare=broken), benchmark.SIZE, "ours").endswith("no kernel for this")
    assert benchmark._cells({"triton": {"error": "far off\nmore"}}).startswith("FAILED: far off")
    monkeypatch.setattr(benchmark, "agree", lambda errors: False)
    monkeypatch.setattr(benchmark, "agreement", lambda *_: {"plain": 0.0})
    assert any("WRONG" in line for line in benchmark.steps(Cpu(), []))
