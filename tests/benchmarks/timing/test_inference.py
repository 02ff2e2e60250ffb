"""Run the benchmark of inference on a CPU, on tiny models: every peer classifies, is timed and held to its goals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.harness import Cpu
from benchmarks.timing import inference as benchmark
from benchmarks.timing import peers, step_command, steps
from benchmarks.timing.steps import Job, Run, StepEffort
from tests.benchmarks.tiny import TINY

pytest.importorskip("triton")
# Raised while the compiler is imported.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:aim.graph. this call runs eagerly"),
]
EFFORT = StepEffort(warmup=1, rounds=1, seconds=0, bounds=(2, 2))


@pytest.fixture(autouse=True)
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "BACKEND", "eager")
    torch.compiler.reset()


@pytest.mark.parametrize("peer", sorted({*benchmark.MANY, *benchmark.FEW, *benchmark.SWEPT}))
def test_every_peer_computes_the_same(peer: str) -> None:
    logits, other = (steps.make_step(benchmark.TASK, each, TINY, "cpu")() for each in (peer, "plain/eager"))
    assert logits.is_inference() and logits.shape == (2, 3)
    torch.testing.assert_close(logits.float(), other.float(), atol=3e-3, rtol=0)


def test_models_are_in_evaluation_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    task = replace(benchmark.TASK, prepare=lambda model, *_: seen.append(model.training))
    steps.make_step(task, "aim/eager", TINY, "cpu")
    assert seen == [False]


def test_a_wrong_path_is_noticed() -> None:
    def wrong(model: Any, batch: peers.Batch, dtype: torch.dtype) -> dict[str, Tensor]:
        factor = 1.01 if model.aim.execution.fused == "auto" else 1.0
        return {"logits": factor * benchmark.observe(model, batch, dtype)["logits"]}

    assert steps.agree(steps.agreement(benchmark.TASK, TINY, "cpu"))
    assert not steps.agree(steps.agreement(replace(benchmark.TASK, observe=wrong), TINY, "cpu"))


def test_arithmetic_is_that_of_the_forward_pass(tmp_path: Path) -> None:
    run = Run(benchmark.TASK, Cpu(), EFFORT, tmp_path)
    steps.measure(run, Job("tiny", {"aim/eager": ("aim/eager", TINY)}))
    table = json.loads((tmp_path / "inference.json").read_text())["tables"]["tiny"]
    forward = peers.arithmetic(peers.MODELS["plain"](TINY), TINY, train=False)
    assert table["flops_per_clip"] == {"plain, 2 frames": forward}
    assert table["complete"]


def test_goals() -> None:
    size = benchmark.SIZES["base-8"]
    (many,), (few, eager, plain) = (benchmark.goals_of("base-8", replace(size, clips=clips)) for clips in (32, 1))
    entry = {"peak_bytes": 1, "median": 1.0, "latency_seconds": 1.0}
    measured = {
        "aim/graph": entry,
        "plain/whole": {**entry, "median": 1.7},
        "reference/eager": {**entry, "latency_seconds": 2.9, "median": 9.0},
        "reference/blocks": {**entry, "latency_seconds": 1.0},
    }
    (target,) = many("here", measured)
    assert (target.value, target.at_least, target.met) == (1.7, 1.6, True)
    (target,) = few("here", measured)
    assert (target.value, target.at_least, target.met) == (2.9, 3.0, False)
    measured |= {"aim/eager": {**entry, "median": 6.3}, "plain/eager": entry}
    (target,) = eager("here", measured)
    assert (target.value, target.at_most, target.met) == (pytest.approx(0.7), 0.7, True)
    assert not plain("here", measured)[0].met
    assert benchmark.goals_of("large-8", benchmark.SIZES["large-8"]) == ()


def test_the_command_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(benchmark.SIZES, step_command.SMALL, replace(TINY, dtype="float32", clips=1))
    monkeypatch.setattr(step_command, "StepEffort", lambda **_: EFFORT)
    argv = ["--device", "cpu", "--out", str(tmp_path)]
    benchmark.main(argv)
    benchmark.main([*argv, "--sweep", "--sizes", step_command.SMALL, "--seconds", "0"])
    result = json.loads((tmp_path / "inference.json").read_text())
    ((key, table),) = result["tables"].items()
    assert list(table["peers"]) == ["aim/eager", "reference/eager", "plain/eager"]
    assert len(table["targets"]) == 2 and steps.agree(table["agreement"])
    assert result["sweeps"][key]["left_out"] == ["aim/eager, 1 clips", "plain/eager, 1 clips"]
