"""Hold what is asked of our ways to run to what it says, on made-up times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.timing import train_step as benchmark
from benchmarks.timing.goals import Against


def entries(**seconds: float) -> dict[str, Any]:
    return {name.replace("_", "/"): {"median": value, "peak_bytes": 100} for name, value in seconds.items()}


def test_the_fastest_of_ours_is_held_against_the_fastest_compiled_peer() -> None:
    measured = entries(aim_eager=1.0, aim_blocks=1.5, plain_eager=1.1, plain_blocks=1.8, plain_whole=1.6)
    measured["aim/eager"]["peak_bytes"] = 80
    measured["aim/graph"] = {"error": "no"}
    speed, memory = Against("aim", "plain", speed=1.7, memory=0.75)("here", measured)
    assert (speed.value, speed.met, memory.value, memory.met) == (1.6, False, 0.8, False)
    assert speed.what == "here: aim/eager against plain/whole, times as fast"
    assert Against("aim", "swin3d", speed=1.0)("here", measured) == []
    assert not Against("aim", "plain", speed=1.6, memory=0.79)("here", measured)[1].met
    (share,) = Against("aim", "plain", time=0.65)("here", measured)
    assert (share.value, share.met) == (0.625, True)


def test_what_fits_in_16_gib_is_held_against_plain() -> None:
    measured = entries(aim_eager=1.0, aim_low=1.25, plain_blocks=1.5) | entries(**{"aim-low_eager": 1.2})
    measured.pop("aim/low")
    measured["aim/eager"]["peak_bytes"] = 17 * 2**30
    (target,) = benchmark.fits("large", measured)
    assert target.value == pytest.approx(1.25) and not target.met and "aim-low/eager" in target.what
    measured.pop("aim-low/eager")
    assert benchmark.fits("large", measured)[0].value == 0.0
    assert benchmark.fits("large", entries(aim_eager=1.0)) == []


def test_steps_with_the_same_number_of_frames_take_as_long() -> None:
    measured = {"aim/blocks, T = 8": {"median": 1.0}, "aim/blocks, T = 64": {"median": 1.06}}
    (target,) = benchmark.straight("frames", measured)
    assert (target.value, target.met) == (1.06, False)
    assert benchmark.straight("frames", {"aim/blocks, T = 8": {"median": 1.0}}) == []


def test_goals_belong_to_the_batch_that_they_are_set_for() -> None:
    assert benchmark.goals_of("base-8", benchmark.BASE) == benchmark.GOALS["base-8"]
    assert benchmark.goals_of("base-8", replace(benchmark.BASE, clips=16)) == ()
    measured = entries(aim_eager=0.5, aim_graph=0.1, reference_eager=1.0, plain_eager=0.4, plain_graph=0.1)
    few = [goal("few", measured) for goal in benchmark.goals_of("base-8", replace(benchmark.BASE, clips=4))]
    assert [(target.value, target.met) for (target,) in few] == [(10.0, True), (0.5, True), (1.25, False)]
    assert len(benchmark.goals_of("base-8", replace(benchmark.BASE, clips=8))) == 2
    assert benchmark.goals_of("base-32", benchmark.SIZES["base-32"]) == ()
