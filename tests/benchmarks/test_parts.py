"""Run the benchmark of a step's parts on a CPU, on tiny tensors: every part and peer, the result's shape."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import parts as benchmark
from benchmarks.temporal_attention import Effort, WallClock

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")
EFFORT = Effort(rounds=2, batch=1e-6, calls=2, copy_bytes=(2**12,), side=16, warmup=0.0)
CASES = benchmark.cases()


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    size = benchmark.Size(6, 24, 8, 40, clips=2)
    monkeypatch.setattr(benchmark, "SIZES", dict.fromkeys(benchmark.SIZES, size))
    monkeypatch.setattr(benchmark, "BACKEND", "aot_eager")
    torch.compiler.reset()


def low(case: benchmark.Case) -> benchmark.Case:
    """Compute in float32: the interpreter multiplies bfloat16 wrongly."""
    return replace(case, low="float32", stream="float32")


@pytest.mark.parametrize("case", [low(case) for case in CASES if case.size == "ViT-B" and case.stream != "float32"])
def test_every_peer_computes_the_same_and_is_timed(case: benchmark.Case) -> None:
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
        ("layer_norm_backward", 24 * (2 + 3 * 4)),
        ("activation", 40 * 4),
        ("activation_backward", 40 * 6),
        ("up_add", 24 * (8 + 2) + 8 * 2),
        ("down_backward", 24 * 4 + 8 * 6),
    ],
)
def test_bytes(part: str, size: int) -> None:
    assert benchmark.Case(part, "ViT-B", "float32", other=True).bytes == 6 * size


def test_what_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = benchmark.run

    def wrong(ops: Any, x: benchmark.Inputs) -> tuple[torch.Tensor, ...]:
        return tuple(out * (1.1 if hasattr(ops, "kernels") else 1.0) for out in right(ops, x))

    monkeypatch.setattr(benchmark, "run", wrong)
    row = benchmark.measure_case(low(CASES[0]), WallClock(), "cpu", bandwidth=1e9, effort=EFFORT)
    assert "ArithmeticError" in row["peers"]["triton"]["error"]
    assert "median" not in row["peers"]["triton"] and "median" in row["peers"]["aten"]
    assert not benchmark.targets([row])[0].met


@pytest.mark.parametrize("case", [low(CASES[0]), low(CASES[-1])], ids=lambda case: case.part)
def test_tiles_are_put_in_use_and_timed(case: benchmark.Case, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = benchmark.tune(case, WallClock(), "cpu", effort=EFFORT)
    assert set(seconds) == {name for name, _ in benchmark.tried(case)}
    assert list(seconds.values()) == sorted(seconds.values())
    assert capsys.readouterr().out == ""


def test_tiles_of_products_are_put_in_use() -> None:
    for part in benchmark.ROWS_COLUMNS_WARPS_STAGES:
        chosen = set()
        for _, used in benchmark.tried(benchmark.Case(part, "ViT-B")):
            with used:
                chosen.add(getattr(benchmark.tiles, part)(8, 2, 2**20))
        assert len(chosen) == len({*benchmark.ROWS_COLUMNS_WARPS_STAGES[part]})


def test_the_whole_run_writes_its_result(tmp_path: Path) -> None:
    wanted = [low(case) for case in CASES[:2]]
    status = benchmark.measure(wanted, tmp_path, clock=WallClock(), device="cpu", effort=EFFORT)
    result = json.loads((tmp_path / "parts.json").read_text())
    assert status == 1  # interpreted kernels are slow
    assert result["complete"] and not result["met"] and len(result["rows"]) == 2
    assert {"ceilings", "ran_on"} <= set(result) and len(result["targets"]) == 2
