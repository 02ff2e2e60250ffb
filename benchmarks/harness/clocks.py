"""Clocks of a GPU and of a CPU: CUDA events, replayed graphs, the host's time, several peers in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from benchmarks.harness import memory

Step = Callable[[], Any]
Replay = Callable[[int], float]  # runs something n times, and says how many seconds one took


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs: the median, and the first and ninth decile to show the spread."""

    median: float
    p10: float
    p90: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Summarize at least two durations, in seconds."""
        deciles = statistics.quantiles(seconds, n=10, method="inclusive")
        return cls(statistics.median(seconds), deciles[0], deciles[-1], len(seconds))


# One call


def seconds_of(run: Step) -> float:
    """Return the seconds of a call on the host's clock."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def wait(device: str) -> None:
    """Wait until a device has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()


class Call(NamedTuple):
    """The seconds of a call that finds an idle device: until the host is free, and until the device is done."""

    host: float
    latency: float


def time_call(step: Step, device: str) -> Call:
    """Time a call that finds an idle device and is waited for.

    A host that fills the GPU's queue, about a thousand launches, waits there; then its own time is a bound only.
    """
    wait(device)
    start = time.perf_counter()
    step()
    host = time.perf_counter() - start
    wait(device)
    return Call(host, time.perf_counter() - start)


def host_timing(call: Step, device: str, *, calls: int, repeats: int) -> Timing:
    """Return the seconds that the host needs for one of several calls; the first repeat warms up."""

    def run() -> None:
        for _ in range(calls):
            call()

    return Timing.of([time_call(run, device).host / calls for _ in range(repeats + 1)][1:])


# Several calls


def event_seconds(steps: Sequence[Step]) -> list[float]:
    """Return the seconds between CUDA events around steps that follow one another: the host may run ahead."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(steps) + 1)]
    events[0].record()
    for step, event in zip(steps, events[1:], strict=True):
        step()
        event.record()
    torch.cuda.synchronize()
    return [1e-3 * a.elapsed_time(b) for a, b in pairwise(events)]


def measure(run: Callable[[Any], object], *, setup: Callable[[], Any], repeats: int, warmup: int = 2) -> list[float]:
    """Time ``run(setup())`` and return the seconds of each repeat; neither ``setup`` nor the warm-up is counted."""
    seconds = []
    for _ in range(warmup + repeats):
        subject = setup()
        seconds.append(seconds_of(lambda subject=subject: run(subject)))
    return seconds[warmup:]


def in_turn(
    runs: Mapping[str, Step], *, undo: Callable[[], object], repeats: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Time several calls in turn, so that drift of the machine meets them all alike; ``undo`` is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(warmup + repeats):
        for name, run in runs.items():
            seconds[name].append(seconds_of(run))
            undo()
    return {name: times[warmup:] for name, times in seconds.items()}


# Clocks: `prepare` returns what replays something.


class GraphClock:
    """Time kernels alone, on a GPU: the work is captured once and replayed."""

    def prepare(self, run: Step) -> Replay:
        """Capture a CUDA graph."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()

        def replay(repeats: int) -> float:
            def batch() -> None:
                for _ in range(repeats):
                    graph.replay()

            return event_seconds([batch])[0] / repeats

        replay(1)
        return replay

    def peak(self, run: Step) -> int:
        """Return the bytes that were allocated at most beyond what was there before."""
        return memory.peak_beyond(run)


class WallClock:
    """Time everything, on a CPU."""

    def prepare(self, run: Step) -> Replay:
        """Run once."""
        run()

        def batch(repeats: int) -> None:
            for _ in range(repeats):
                run()

        return lambda repeats: seconds_of(lambda: batch(repeats)) / repeats

    def peak(self, run: Step) -> None:
        """Return nothing: a CPU's memory is not counted."""


Clock = GraphClock | WallClock


def alternate(replays: Mapping[str, Replay], *, rounds: int, batch: float) -> dict[str, Timing]:
    """Time several peers in turn, in batches of some seconds, so that drift of the clocks meets all alike."""
    repeats = {name: max(1, round(batch / max(replay(2), 1e-7))) for name, replay in replays.items()}
    seconds: dict[str, list[float]] = {name: [] for name in replays}
    for number in range(rounds + 1):
        for name, replay in replays.items():
            took = replay(repeats[name])
            if number:  # the first round warms up
                seconds[name].append(took)
    return {name: Timing.of(times) for name, times in seconds.items()}
