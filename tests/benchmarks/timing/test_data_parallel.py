"""Run the benchmark of several GPUs in two processes on a CPU, and hold its arithmetic to what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import aim_adapters as aim
from benchmarks.harness import Cpu, Step
from benchmarks.timing import data_parallel as benchmark
from benchmarks.timing import peers, replicas
from benchmarks.timing.data_parallel import Plan
from benchmarks.timing.peers import Size
from benchmarks.timing.steps import StepEffort
from benchmarks.timing.team import PeerError, Team
from tests import processes
from tests.benchmarks.tiny import TINY

EFFORT = StepEffort(warmup=2, rounds=2, seconds=0, bounds=(2, 2))
CHOSEN = ("aim/blocks", "plain/eager", "aim-low/eager", "aim/eager", "aim/eager+flat", "aim-fp32/eager+fsdp2")
HELD = ("aim/blocks", "aim/eager", "aim/eager+flat", "aim-fp32/eager+fsdp2")


def fails_on_the_second(size: Size) -> nn.Module:
    if dist.get_rank():
        raise RuntimeError("no room")
    return peers.wrapped(size)


def work(rank: int, plan: Plan, store: str) -> None:
    """Be a process in which some peers are broken; it is a fresh one, which knows nothing of the test's."""
    hold = benchmark.hold
    peers.BACKEND = "eager"
    peers.MODELS["plain"] = fails_on_the_second
    benchmark.hold = lambda model, peer: model if model.aim.execution.memory == "low" else hold(model, peer)
    benchmark.work(rank, plan, store)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "work", work)
        patch.setattr(benchmark.mp, "spawn", processes.start)
        patch.setattr(benchmark, "EFFORT", EFFORT)
        patch.setitem(benchmark.SIZES, "cpu", TINY)
        status = benchmark.main(["--device", "cpu", "--peers", *CHOSEN, "--out", str(folder)])
    return status, json.loads((folder / "data_parallel.json").read_text())


# Two processes


def test_two_processes_train_and_are_timed(ran: tuple[int, dict[str, Any]]) -> None:
    status, result = ran
    assert list(result["peers"]) == list(CHOSEN)
    trained = aim.count_parameters(peers.wrapped(TINY)).trainable
    for peer in HELD:
        entry = result["peers"][peer]
        assert (entry["processes"], entry["clips"], entry["gradient_bytes"]) == (2, 2, 4 * trained)
        assert [entry[which]["repeats"] for which in ("alone", "apart", "together")] == [4] * 3
        assert entry["efficiency"] == entry["alone"]["median"] / entry["together"]["median"]
        assert entry["clips_per_second"] == 4 / entry["together"]["median"]
        assert entry["seconds_until_ready"] > 0
    assert result["complete"] and result["size"] == asdict(TINY)
    assert result["command"] == f"python -m benchmarks.timing.data_parallel --device cpu --peers {' '.join(CHOSEN)}"
    assert {"benchmark", "question", "ran_on"} <= result.keys()
    assert (status, result["targets"]) == (0, [])  # of GPUs alone


def test_a_peer_that_fails_on_one_process_fails_on_all(ran: tuple[int, dict[str, Any]]) -> None:
    assert ran[1]["peers"]["plain/eager"] == {"error": "process 1: RuntimeError: no room"}


def test_processes_that_train_each_for_itself_have_no_times(ran: tuple[int, dict[str, Any]]) -> None:
    entry = ran[1]["peers"]["aim-low/eager"]
    assert entry.keys() == {"error"}
    assert re.match(r"process 1: ValueError: \d\d+ parameters are not those of process 0", entry["error"])


# One peer


class Told(Team):
    """The first of two processes; the other tells what it is told to."""

    def __init__(self, other: Callable[[Any], Any], machine: Cpu | None = None) -> None:
        super().__init__(0, machine or Cpu())
        self.other = other

    def tell(self, value: Any) -> list[Any]:
        return [value, self.other(value)]


@pytest.mark.parametrize("ours", [True, False])
def test_a_failure_of_either_is_one_of_both(ours: bool) -> None:
    def act() -> int:
        if ours:
            raise ValueError("boom")
        return 7

    team = Told(lambda _: None if ours else "ValueError: boom")
    with pytest.raises(PeerError, match=f"process {0 if ours else 1}: ValueError: boom"):
        team.act(act)
    assert Told(lambda _: None).act(lambda: 7) == 7


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    losses = iter([1.0, float("nan"), 1.0])
    with pytest.raises(ArithmeticError, match=r"not finite: \[1.0, nan, 1.0\]"):
        benchmark.warm(lambda: torch.tensor(next(losses)), 3)


def test_one_and_all_take_turns() -> None:
    order: list[str] = []

    class Counted(Cpu):
        def times(self, step: Step, repeats: int) -> list[float]:
            return [float(step()) for _ in range(repeats)]

    def step(name: str, seconds: float) -> Step:
        def run() -> Tensor:
            order.append(name)
            return torch.tensor(seconds)

        return run

    def other(seconds: list[float] | None) -> list[float]:
        order.append("meet" if seconds is None else "wait")
        return [2 * each for each in seconds or ()]

    turns = benchmark.take_turns(Told(other, Counted()), step("one", 1.0), step("all", 1.5), effort=EFFORT, count=3)
    both = [[name, name, "meet", name, name, name, "wait"] for name in ("one", "all")]  # the first two are not counted
    assert order == [*["one"] * 5, "wait", *both[0], *both[1]] * 2
    assert turns == ([1.0] * 6, [2.0] * 6, [3.0] * 6)  # the other's own time alone is not meant, that of all is


def test_the_slowest_process_counts() -> None:
    # which is one of them, not the worst of each step
    assert benchmark.slowest([[1.0, 1.0, 9.0], [4.0, 4.0, 4.0]]) == [4.0, 4.0, 4.0]


def test_share_of_linear() -> None:
    entry = benchmark.compared([2.0, 1.8, 1.9], [1.9, 1.9], [2.0, 2.0, 5.0], processes=4, clips=32)
    assert entry["efficiency"] == pytest.approx(0.95)
    assert entry["clips_per_second"] == pytest.approx(4 * 32 / 2.0)
    assert (entry["processes"], entry["together"]["repeats"]) == (4, 3)


# Targets


@pytest.mark.parametrize(("together", "met"), [(1 / 0.951, True), (1 / 0.949, False)])
def test_95_percent_of_linear_are_asked(together: float, met: bool) -> None:
    entry, slow = (
        benchmark.compared([1.0] * 2, [1.0] * 2, [s] * 2, processes=2, clips=1) for s in (together, 2 * together)
    )
    (target,) = benchmark.targets({"aim/eager": slow, "aim/graph": entry, "timesformer/blocks": entry})
    assert (target.what, target.met) == ("aim/graph: share of linear", met)


def test_one_bucket_holds_what_a_graph_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    caps: dict[str, Any] = {}
    monkeypatch.setattr(
        replicas, "DistributedDataParallel", lambda model, **how: caps.update({peer: how["bucket_cap_mb"]})
    )
    model = nn.Sequential(
        nn.Linear(2**10, 2**11, bias=False), nn.Linear(2**11, 2**12, bias=False).requires_grad_(False)
    )
    for peer in ("aim/graph", "aim/blocks"):
        replicas.hold(model, peer)
    assert caps == {"aim/graph": 9, "aim/blocks": None}  # of 8 MiB, and PyTorch's own


def test_what_failed_does_not_scale() -> None:
    (target,) = benchmark.targets({"aim/graph": {"error": "no"}, "full/eager": {"error": "no"}})
    assert (target.value, target.met) == (0.0, False)


# The command


@pytest.mark.parametrize(("seconds", "status"), [(1.0, 0), (1.1, 1)])
def test_the_command_on_gpus(
    seconds: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def time_peer(team: Team, peer: str, size: Size, effort: StepEffort) -> dict[str, Any]:
        if peer == "timesformer/blocks":
            raise PeerError("process 1: no")
        times = benchmark.compared([1.0] * 2, [1.0] * 2, [seconds] * 2, processes=3, clips=size.clips)
        return {**times, "gradient_bytes": 44_000_000}

    def spawn(work: Any, *, args: tuple[Plan, str], nprocs: int) -> None:
        assert (work, nprocs, args[0].processes) == (benchmark.work, 3, 3)
        benchmark.measure(Team(0, Cpu()), args[0])

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(benchmark, "record", dict)
    monkeypatch.setattr(benchmark, "time_peer", time_peer)
    monkeypatch.setattr(benchmark.mp, "spawn", spawn)
    assert benchmark.main(["--out", str(tmp_path)]) == status
    result = json.loads((tmp_path / "data_parallel.json").read_text())
    assert tuple(result["peers"]) == benchmark.PEERS["cuda"] and result["complete"]
    assert result["peers"]["timesformer/blocks"] == {"error": "process 1: no"}
    assert [target["met"] for target in result["targets"]] == [not status]
    assert result["peers"]["aim/graph"]["clips_per_second"] == pytest.approx(3 * 32 / seconds)
    out = capsys.readouterr().out
    assert "alone 1000.00 ms, 3 apart 1000.00, together" in out and "process 1: no" in out


@pytest.mark.parametrize(
    ("argv", "gpus", "words"),
    [
        ("", 1, "at least 2 GPUs are needed, there are 1"),
        ("--processes 2", 0, "at least 2 GPUs are needed, there are 0"),
        ("--processes 5", 4, "each needs a GPU, and there are 4, got 5"),
        ("--processes 1", 4, "at least 2 are needed, got 1"),
        ("--processes 0 --device cpu", 0, "at least 2 are needed, got 0"),
        ("--peers aim/fast+flat", 4, "got 'aim/fast'"),
        ("--peers ours/eager --device cpu", 0, "got 'ours/eager'"),
    ],
)
def test_errors_say_what_is_wrong(
    argv: str, gpus: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(argv.split())
    assert words in " ".join(capsys.readouterr().err.split())


def test_fewer_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [benchmark.parse(argv.split()).processes for argv in ("", "--processes 2", "--device cpu")] == [4, 2, 2]


def test_the_size_is_that_of_train_step() -> None:
    size = benchmark.SIZES["cuda"]
    assert (size.name, size.frames, size.clips, size.dtype) == ("vit_base_patch16_clip_224", 8, 32, "bfloat16")
    assert size == benchmark.train_step.SIZES["base-8"]
