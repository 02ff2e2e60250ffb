"""Run the benchmark of spatial attention on a CPU, on tiny tensors: every pass, the tuning, the result's shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from aim_adapters.ops.spatial_attention.tiles import alternatives
from benchmarks.harness import Effort, WallClock
from benchmarks.timing import spatial_attention as benchmark

pytest.importorskip("triton")
EFFORT = Effort(rounds=2, batch=1e-6, calls=2, copy_bytes=(2**12,), side=16, warmup=0.0)
PEERS = ("triton", "math")


def tiny(**settings: Any) -> benchmark.Case:
    sizes = {"tokens": 9, "frames": 4, "heads": 2, "dim": 16, "dtype": "float16", "peers": PEERS}
    return benchmark.Case(**{**sizes, **settings})


def rows(case: benchmark.Case) -> list[dict[str, Any]]:
    return list(benchmark.measure_case(case, WallClock(), "cpu", bandwidth=1e9, effort=EFFORT))


@pytest.mark.parametrize("case", [tiny(), tiny(bias=True, windows=2, masked=True)], ids=["plain", "added"])
def test_every_peer_computes_the_same_and_is_timed(case: benchmark.Case) -> None:
    forward, both = rows(case)
    assert (forward["pass"], both["pass"]) == ("forward", "forward+backward")
    assert forward["bytes"] == 4 * case.frames * 9 * max(1, case.windows) * 2 * 16 * 2
    for row in (forward, both):
        ours, peer = row["peers"]["triton"], row["peers"]["math"]
        assert max(*ours["errors"], *peer["errors"]) < 4e-3
        assert row["speedup"] == pytest.approx(peer["median"] / ours["median"])
        assert ours["share_of_copy"] == pytest.approx(row["bytes"] / ours["median"] / 1e9)
        json.dumps(row)
        assert all(name in benchmark.describe(row) for name in PEERS)


def test_what_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = benchmark.spatial_attention

    def wrong(*args: Any, implementation: str, **options: Any) -> torch.Tensor:
        return right(*args, implementation=implementation, **options) * (1.1 if implementation == "sdpa" else 1.0)

    monkeypatch.setattr(benchmark, "spatial_attention", wrong)
    for row in rows(tiny()):
        assert "ArithmeticError" in row["peers"]["math"]["error"]
        assert "median" not in row["peers"]["math"]
        assert "speedup" not in row
        assert "ArithmeticError" in benchmark.describe(row)
        assert not any(target.met for target in benchmark.targets([row]))


def test_tuning_times_every_alternative() -> None:
    case = tiny(windows=2, masked=True)
    for backward, row in enumerate(benchmark.tune_case(case, WallClock(), "cpu", effort=EFFORT)):
        expected = alternatives(9, 16, added=True, backward=bool(backward))
        assert list(row["peers"]) == [" ".join(map(str, tiles)) for tiles in expected]
        assert all(entry["median"] > 0 and max(entry["errors"]) < 4e-3 for entry in row["peers"].values())


def test_the_whole_run_writes_its_result(tmp_path: Path) -> None:
    status = benchmark.measure([tiny()], tmp_path, clock=WallClock(), device="cpu", effort=EFFORT)
    result = json.loads((tmp_path / "spatial_attention.json").read_text())
    assert status == 1  # interpreted kernels are slow
    assert not result["met"] and len(result["targets"]) == 1
    assert [row["pass"] for row in result["rows"]] == ["forward", "forward+backward"]
    assert {"ceilings", "ran_on", "command"} <= set(result)
