"""Run the benchmark of a step's parts on a CPU, on tiny tensors: every part and peer, the result's shape."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from benchmarks.harness import Effort, WallClock
from benchmarks.timing import parts as benchmark
from benchmarks.timing import parts_peers, parts_tiles
from benchmarks.timing.parts_peers import Case, Inputs

bottleneck = pytest.importorskip("aim_adapters.ops.bottleneck.triton")
frozen = pytest.importorskip("aim_adapters.ops.frozen.triton")
EFFORT = Effort(rounds=2, batch=1e-6, calls=2, copy_bytes=(2**12,), side=16, warmup=0.0)
CASES = benchmark.cases()


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    size = parts_peers.Size(6, 24, 8, 40, clips=2)
    monkeypatch.setattr(parts_peers, "SIZES", dict.fromkeys(parts_peers.SIZES, size))
    monkeypatch.setattr(parts_peers, "BACKEND", "aot_eager")
    torch.compiler.reset()


def low(case: Case) -> Case:
    """Compute in float32, so that rounding hides nothing."""
    return replace(case, low="float32", stream="float32")


def first(part: str) -> Case:
    return next(low(case) for case in CASES if case.part == part)


@pytest.mark.parametrize("case", {low(case): None for case in CASES if case.size == "ViT-B"}, ids=str)
def test_every_peer_computes_the_same_and_is_timed(case: Case) -> None:
    row = benchmark.measure_case(case, WallClock(), "cpu", bandwidth=1e9, effort=EFFORT)
    assert tuple(row["peers"]) == benchmark.peers(case)
    for entry in row["peers"].values():
        assert "error" not in entry, entry
        assert max(entry["errors"]) < 1e-5
        assert entry["bytes_per_second"] == pytest.approx(row["bytes"] / entry["median"])
        assert entry["share_of_copy"] == pytest.approx(entry["bytes_per_second"] / 1e9)
    json.dumps(row)
    assert all(peer in benchmark.describe(row) for peer in row["peers"])


@pytest.mark.parametrize(
    ("part", "size"),
    [
        ("layer_norm", 24 * (4 + 2)),
        ("add_layer_norm", 24 * (2 * 4 + 2 * 2)),
        ("layer_norm_backward", 24 * (2 + 3 * 4)),
        ("add", 24 * (2 * 4 + 2)),
        ("activation", 40 * 4),
        ("activation_backward", 40 * 6),
        ("hidden", (8 + 16) * 2),
        ("hidden_backward", (3 * 8 + 16) * 2),
    ],
)
def test_bytes(part: str, size: int) -> None:
    assert Case(part, "ViT-B", "float32").bytes == 6 * size


def test_what_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = parts_peers.run

    def wrong(ops: Any, x: Inputs) -> tuple[torch.Tensor, ...]:
        return tuple(out * (1.1 if hasattr(ops, "kernels") else 1.0) for out in right(ops, x))

    monkeypatch.setattr(parts_peers, "run", wrong)
    row = benchmark.measure_case(low(CASES[0]), WallClock(), "cpu", bandwidth=1e9, effort=EFFORT)
    assert "ArithmeticError" in row["peers"]["triton"]["error"]
    assert "median" not in row["peers"]["triton"] and "median" in row["peers"]["aten"]
    assert not benchmark.targets([row])[0].met


@pytest.mark.parametrize("part", ["layer_norm", "activation", "hidden"])
def test_tiles_are_put_in_use_and_timed(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = benchmark.tune(first(part), WallClock(), "cpu", effort=EFFORT)
    assert set(seconds) == {name for name, _ in parts_tiles.tried(first(part))}
    assert list(seconds.values()) == sorted(seconds.values())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("part", benchmark.PARTS)
def test_every_tile_is_another(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_peers, "SIZES", {"ViT-B": parts_peers.Size(4, 768, 192, 3072, clips=2)})
    x = Inputs.of(Case(part, "ViT-B"), "cpu")
    kernels = (bottleneck if part in benchmark.OF_ADAPTERS else frozen).kernels
    name = "layer_norm" if part == "add_layer_norm" else part
    launched = []
    for _, used in parts_tiles.tried(x.case):
        with used, mock.patch.object(kernels, f"{name}_kernel") as kernel:
            parts_peers.run(parts_peers.implementation("triton"), x)
        launched.append(str(kernel.__getitem__.return_value.call_args.kwargs))
    others = launched[1:]  # what is in use may be among them
    assert len(others) == len(set(others)) > 5


def test_the_whole_run_writes_its_result(tmp_path: Path) -> None:
    wanted = [low(case) for case in CASES[:2]]
    status = benchmark.measure(wanted, tmp_path, clock=WallClock(), device="cpu", effort=EFFORT)
    result = json.loads((tmp_path / "parts.json").read_text())
    assert status == 1  # interpreted kernels are slow
    assert result["complete"] and not result["met"] and len(result["rows"]) == 2
    assert {"ceilings", "ran_on"} <= set(result) and len(result["targets"]) == 2
