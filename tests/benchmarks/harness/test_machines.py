"""Hold a GPU's clocks and meters to what they say, on one that is made up and on one that is there."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import Cpu, Gpu, GraphClock, Machine, Timing, alternate
from benchmarks.harness.memory import peak_beyond


class Event:
    """A CUDA event on a clock that the test moves."""

    now = 0.0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Event.now

    def elapsed_time(self, later: Event) -> float:
        return 1e3 * (later.at - self.at)  # milliseconds, as CUDA's


def advance() -> None:
    Event.now += 2.0


def test_steps_that_follow_one_another_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[bool] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    assert Gpu().times(advance, 3) == pytest.approx([2.0] * 3)
    assert waited == [True]  # once, at the end: the host may run ahead


def test_a_cpu_has_clocks_and_no_meters() -> None:
    machine = Cpu()
    assert len(machine.times(lambda: None, 3)) == 3 and min(machine.times(lambda: None, 3)) >= 0
    assert (machine.held(), machine.peak(), machine.ceiling(), machine.joules(lambda: None, 1)) == (0, None, None, None)
    assert (machine.alone(lambda: None), machine.kernels(lambda: None, 1)) == ({}, [])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_is_there() -> None:
    machine: Machine = Gpu()
    a = torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16)

    def step() -> torch.Tensor:
        return a @ a

    step()
    seconds = machine.times(step, 20)
    assert len(seconds) == 20 and 1e-6 < Timing.of(seconds).median < 1e-2
    alone = machine.alone(step)
    assert 0 < alone["host_seconds"] <= alone["latency_seconds"] < 1e-1
    before = machine.held()
    step()
    assert machine.peak() - before == peak_beyond(step) == GraphClock().peak(step) == 2 * a.numel()
    kernels = machine.kernels(step, 3)
    assert len(kernels) >= 3 and all(kernel.seconds > 0 for kernel in kernels)
    assert 1e12 < machine.ceiling() < 1e16
    replayed = alternate({"product": GraphClock().prepare(step)}, rounds=3, batch=1e-3)["product"]
    # A replayed product takes what the profiler counts, and its launch at most.
    assert replayed.median == pytest.approx(sum(kernel.seconds for kernel in kernels) / 3, rel=0.5, abs=2e-5)
    machine.forget()
