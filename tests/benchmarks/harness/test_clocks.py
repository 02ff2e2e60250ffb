"""Hold clocks to what they say."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.harness import Timing, alternate, clocks, host_timing, in_turn, measure, time_call


def test_timing_summarizes() -> None:
    timing = Timing.of([3.0, 1.0, 2.0])
    assert (timing.median, timing.repeats) == (2.0, 3)
    assert 1.0 <= timing.p10 <= timing.median <= timing.p90 <= 3.0


def test_measure_sets_up_every_run_and_drops_the_warmup() -> None:
    made: list[int] = []
    ran: list[int] = []

    def setup() -> int:
        made.append(len(made))
        return made[-1]

    seconds = measure(ran.append, setup=setup, repeats=3, warmup=2)
    assert len(seconds) == 3
    assert made == ran == [0, 1, 2, 3, 4]


def test_peers_are_timed_in_turn() -> None:
    calls: list[str] = []

    def peer(name: str, seconds: float) -> Any:
        def replay(repeats: int) -> float:
            calls.append(f"{name}{repeats}")
            return seconds

        return replay

    times = alternate({"a": peer("a", 0.5), "b": peer("b", 0.25)}, rounds=2, batch=1.0)
    assert calls == ["a2", "b2", *(["a2", "b4"] * 3)]
    assert (times["a"].median, times["a"].repeats, times["b"].median) == (0.5, 2, 0.25)


def test_calls_are_timed_in_turn_and_undone() -> None:
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = in_turn(runs, undo=lambda: calls.append("undo"), repeats=3, warmup=2)
    assert calls == ["a", "undo", "b", "undo"] * 5
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_a_call_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def advance(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(clocks.time, "perf_counter", lambda: now)
    monkeypatch.setattr(clocks.torch.cuda, "synchronize", lambda: advance(4.0))
    assert time_call(lambda: advance(1.0), "cuda") == (1.0, 5.0)
    assert time_call(lambda: advance(1.0), "cpu") == (1.0, 1.0)
    timing = host_timing(lambda: advance(1.0), "cuda", calls=3, repeats=2)
    assert (timing.median, timing.repeats) == (1.0, 2)
