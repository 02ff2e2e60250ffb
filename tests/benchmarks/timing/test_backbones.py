"""Run the benchmark of today's backbones on a CPU, on tiny models, and hold its goals to what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import step_tables
from benchmarks.timing import backbones as benchmark
from benchmarks.timing import peers, step_command
from benchmarks.timing.steps import StepEffort
from tests.benchmarks.tiny import TINY

pytest.importorskip("triton")


def test_backbones_are_what_their_names_say() -> None:
    counts = {name: benchmark.tokens(size) for name, size in benchmark.SIZES.items()}
    assert counts == {
        benchmark.CLIP: 197, benchmark.SSV2: 197, "DINOv3 B/16": 201, "SigLIP 2 B/16": 196, "EVA-02 B/14": 257,
        "DINOv2 B/14": 257,
    }  # fmt: skip
    assert len({(size.clips, size.frames) for size in benchmark.SIZES.values()}) == 1


def test_goals() -> None:
    measured: dict[str, Any] = {
        f"{peer}, {name}": {"median": seconds}
        for name, ours in {benchmark.CLIP: 1.0, benchmark.SSV2: 1.1, "DINOv3 B/16": 1.07, "EVA-02 B/14": 1.7}.items()
        for peer, seconds in {"aim/eager": 2.0, "aim/recorded": ours, "plain/blocks": 2.0, "plain/eager": 1.0}.items()
    }
    found = {target.what.removeprefix("here: "): target for target in benchmark.goals("here", measured)}
    values = {what: (round(target.value, 3), target.met) for what, target in found.items()}
    assert values == {
        "CLIP B/16, SSv2 against CLIP B/16, share of its time": (1.1, False),
        "DINOv3 B/16 against CLIP B/16, share of its time for a token": (round(1.07 * 197 / 201, 3), True),
        "DINOv3 B/16, aim/recorded against plain/blocks, times as fast": (round(2 / 1.07, 3), True),
        "EVA-02 B/14 against CLIP B/16, share of its time for a token": (round(1.7 * 197 / 257, 3), False),
        "EVA-02 B/14, aim/recorded against plain/blocks, times as fast": (round(2 / 1.7, 3), False),
    }
    assert benchmark.goals("here", {}) == []


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = replace(TINY, dtype="float32")
    monkeypatch.setattr(benchmark, "SIZES", {benchmark.CLIP: size, benchmark.SSV2: replace(size, input_adapter=True)})
    monkeypatch.setattr(peers, "BACKEND", "eager")
    effort = StepEffort(warmup=1, rounds=1, seconds=0, bounds=(2, 2), arithmetic=False)
    monkeypatch.setattr(step_command, "StepEffort", lambda **_: effort)
    benchmark.main(["--device", "cpu", "--no-compile", "--clips", "1", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "train_step.json").read_text())
    ((key, table),) = result["tables"].items()
    assert list(table["peers"]) == [f"aim/eager, {name}" for name in (benchmark.CLIP, benchmark.SSV2)]
    assert table["command"].startswith("python -m benchmarks.timing.backbones")
    parts = table["agreement"]["aim"]
    assert "test_vit with input adapter: temporal" in parts and all(error < 1e-5 for error in parts.values())
    assert len(table["targets"]) == 1
    table["peers"] = {name: {**entry, "peak_bytes": 2**30} for name, entry in table["peers"].items()}
    assert f"| {benchmark.SSV2} | AIM | no |" in step_tables.backbones({"train_step": result})
    table["device"] = "cuda"
    assert key not in step_tables.steps({"train_step": result})
