"""Run the benchmark of temporal attention on a CPU, on tiny tensors: every peer, every pass, the result's shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness import Effort, WallClock
from benchmarks.timing import temporal_attention as benchmark
from benchmarks.timing import temporal_host, temporal_peers

pytest.importorskip("triton")
TINY = {"tokens": 5, "heads": 2, "dim": 16, "dtype": "float32", "images": 8}
EFFORT = Effort(rounds=2, batch=1e-6, calls=2, copy_bytes=(2**12,), side=16, warmup=0.0)
ON_A_CPU = ("triton", "sdpa", "sdpa compiled", "eager")


@pytest.fixture(autouse=True)
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporal_peers, "BACKEND", "aot_eager")
    torch.compiler.reset()


def tiny(num_frames: int = 4, **settings: Any) -> benchmark.Case:
    return benchmark.Case("tiny", num_frames, **{**TINY, **settings})


def rows(case: benchmark.Case, bandwidth: float = 1e9) -> list[dict[str, Any]]:
    return list(benchmark.measure_case(case, WallClock(), "cpu", bandwidth=bandwidth, effort=EFFORT))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_every_peer_computes_the_same_and_is_timed(packed: bool, bias: bool) -> None:
    case = tiny(packed=packed, bias=bias, peers=ON_A_CPU)
    forward, both = rows(case)
    assert (forward["pass"], both["pass"]) == ("forward", "forward+backward")
    unit = 8 * 5 * 2 * 16 * 4
    assert (forward["bytes"], both["bytes"]) == (4 * unit, 11 * unit)
    for row in (forward, both):
        assert set(row["peers"]) == set(ON_A_CPU)
        for entry in row["peers"].values():
            assert "error" not in entry, entry
            assert len(entry["errors"]) == 1 + len(benchmark.Inputs(case, "cpu").leaves)
            assert max(entry["errors"]) < 1e-5
            assert entry["bytes_per_second"] == pytest.approx(row["bytes"] / entry["median"])
            assert entry["share_of_copy"] == pytest.approx(entry["bytes_per_second"] / 1e9)
        ours = row["peers"]["triton"]["median"]
        assert row["speedup"]["sdpa"] == pytest.approx(row["peers"]["sdpa"]["median"] / ours)
        json.dumps(row)
        assert all(peer in benchmark.describe(row) for peer in ON_A_CPU)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_flex_attention_computes_the_same(packed: bool, bias: bool) -> None:
    # On a CPU it has no backward pass.
    inputs = benchmark.Inputs(tiny(8, packed=packed, bias=bias, images=16), "cpu")
    with torch.no_grad():
        out = benchmark.build("flex", inputs)()
    torch.testing.assert_close(out, inputs.reference[0].float())


def test_flex_attention_says_what_it_cannot_do() -> None:
    forward, both = rows(tiny(3, images=6, peers=("triton", "flex")))
    for row in (forward, both):
        assert "3 frames straddle" in row["peers"]["flex"]["error"]
        assert "flex" not in row["speedup"]
        assert "straddle" in benchmark.describe(row)


def test_what_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = temporal_peers.by_name
    monkeypatch.setattr(
        temporal_peers, "by_name", lambda name, inputs: right("eager", inputs) * (1.1 if name == "sdpa" else 1.0)
    )
    for row in rows(tiny(peers=("triton", "sdpa"))):
        assert "ArithmeticError" in row["peers"]["sdpa"]["error"]
        assert "median" not in row["peers"]["sdpa"]
        assert row["speedup"] == {}
        assert not all(target.met for target in benchmark.targets([row]))


def test_host_costs_are_for_one_call() -> None:
    costs = temporal_host.host_costs("cpu", dtype="float32", calls=2, repeats=2)
    assert len(costs) == 2 * 4 * 2
    for cost in costs.values():
        assert 1e-6 < cost < 10.0


def test_the_first_call_is_timed_in_processes_of_their_own() -> None:
    case = tiny(peers=())
    seconds = temporal_host.start_up(case, "cpu")
    assert list(seconds) == ["empty cache", "filled cache"]
    assert all(len(calls) == 2 and min(calls) > 0 for calls in seconds.values())


def row(frames: int, speedup: float, share: float, table: str = "main") -> dict[str, Any]:
    peers = {"triton": {"share_of_copy": share}}
    case = {"table": table, "num_frames": frames, "heads": 12, "dim": 64, "dtype": "bfloat16"}
    return {"case": case, "pass": "forward+backward", "peers": peers, "speedup": {"sdpa": speedup}}


@pytest.mark.parametrize(
    ("measured", "met"),
    [
        (row(8, 18.1, 0.81), [True, True]),
        (row(8, 17.9, 0.81), [False, True]),
        (row(16, 12.1, 0.79), [True, False]),
        (row(128, 0.9, 0.1), [False]),
        (row(8, 1.1, 0.1, "lengths"), [True]),
        (row(8, 0.9, 0.1, "lengths"), [False]),
    ],
)
def test_targets(measured: dict[str, Any], met: list[bool]) -> None:
    assert [target.met for target in benchmark.targets([measured])] == met


def test_a_row_without_ours_misses_its_targets() -> None:
    broken = row(8, 0.0, 0.0)
    broken["peers"]["triton"] = {"error": "no"}
    del broken["speedup"]
    assert [target.met for target in benchmark.targets([broken])] == [False, False]


def test_the_whole_run_writes_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each has a test of its own.
    monkeypatch.setattr(benchmark, "host_costs", lambda device, *, dtype, calls: {f"{device}, {dtype}": calls})
    monkeypatch.setattr(benchmark, "start_up", lambda case, device: {f"{device}, {case.num_frames}": [2.0, 1.0]})
    cases = [benchmark.Case("main", 8, **TINY, peers=("triton", "sdpa")), tiny(peers=("triton",))]
    status = benchmark.measure(cases, tmp_path, clock=WallClock(), device="cpu", effort=EFFORT)
    result = json.loads((tmp_path / "temporal_attention.json").read_text())
    assert status == 1  # interpreted kernels are slow
    assert result["complete"] and not result["met"]
    assert len(result["rows"]) == 4
    assert {"ceilings", "ran_on"} <= set(result)
    assert (result["host_seconds"], result["start_up_seconds"]) == ({"cpu, float32": 2}, {"cpu, 8": [2.0, 1.0]})
    assert not all(target["met"] for target in result["targets"])


def test_a_run_that_is_out_of_time_has_not_met_its_targets(tmp_path: Path) -> None:
    clock = WallClock()
    assert benchmark.measure([tiny()], tmp_path, clock=clock, device="cpu", effort=EFFORT, limit=0.0) == 1
    result = json.loads((tmp_path / "temporal_attention.json").read_text())
    assert not result["complete"] and result["rows"] == []
