"""Hold verdicts to what they say of chance, on made-up rows."""

from __future__ import annotations

import math
import random

import pytest

from benchmarks.motion import judging
from benchmarks.motion.judging import FAILS, HOLDS, UNDECIDED, Cell, Difference, Evidence, decide, interval_of
from benchmarks.motion.programs import DIRECTED, classes_of
from benchmarks.motion.results import Results
from tests.benchmarks.made_up import made_up
from tests.benchmarks.scenes import scenes

ABOVE = Difference((), low=0.0)
EQUAL = Difference((), low=-2.0, high=2.0)


@pytest.mark.parametrize(
    ("values", "figure", "verdict"),
    [
        ([5.0, 6.0, 7.0], ABOVE, HOLDS),
        ([-5.0, -6.0, -7.0], ABOVE, FAILS),
        ([1.0, 6.0, 11.0], ABOVE, UNDECIDED),
        ([0.0, 0.0, 0.0], ABOVE, UNDECIDED),
        ([5.0, 6.0], ABOVE, HOLDS),
        ([5.0, 7.0], ABOVE, UNDECIDED),
        ([-0.5, 0.0, 0.5], EQUAL, HOLDS),
        ([-3.5, -3.6, -3.7], EQUAL, FAILS),
        ([3.5, 3.6, 3.7], EQUAL, FAILS),
        ([1.0, 1.5, 2.0], EQUAL, UNDECIDED),
    ],
)
def test_an_interval_decides(values: list[float], figure: Difference, verdict: str) -> None:
    assert decide(interval_of(values), figure) == verdict


@pytest.mark.parametrize("seeds", [2, 3, 6, 10, 15])
def test_chance_errs_as_often_as_is_said(seeds: int) -> None:
    drawn = random.Random(seeds)
    found = [decide(interval_of([drawn.gauss(0, 3) for _ in range(seeds)]), ABOVE) for _ in range(4000)]
    for verdict in (HOLDS, FAILS):
        assert 0.035 < found.count(verdict) / len(found) < 0.065


def test_half_an_interval_of_three_seeds() -> None:
    found = interval_of([-1.0, 0.0, 1.0])
    assert (found.value, found.high) == (0.0, pytest.approx(1.7, abs=0.02)) and found.low == -found.high
    same = interval_of([1.0, 1.0, 1.0])
    assert same.high - 1 == pytest.approx(2.92 * 100 / 1200 / math.sqrt(3))


def test_seeds_are_paired() -> None:
    results = made_up()
    runs = tuple(
        run._replace(accuracy=run.accuracy + 20 * run.seed)
        for run in results.runs
        if (run.way, run.seed) != ("full", 2)
    )
    evidence = Evidence(results._replace(runs=runs))
    by_seed = Difference(((1, Cell("joint")), (-1, Cell("spatial"))))
    assert by_seed.interval(evidence) == interval_of(5 * [33.0])
    two = Difference(((1, Cell("full")), (-1, Cell("spatial"))), less=1.0)
    assert two.interval(evidence) == interval_of(4 * [-1.0])
    one = Results(runs=tuple(run for run in runs if run.seed == 0))
    assert by_seed.interval(Evidence(one)) is None


def test_a_time_is_a_little_off_and_a_number_is_not() -> None:
    evidence = Evidence(made_up())
    assert judging.Ratio("step_ms", "top", "joint").interval(evidence) == pytest.approx((2 / 3, 0.97 / 1.5, 1.03 / 1.5))
    assert judging.Ratio("peak_mib", "top", "joint").interval(evidence) == (0.5, 0.5, 0.5)
    assert judging.Ratio("peak_mib", "top", "unknown").interval(evidence) is None


def test_kinds_of_classes_are_those_of_the_task() -> None:
    classes = classes_of("order", scenes())
    kinds = [judging.ITSELF if label == other else judging.DIRECTED for label, other in enumerate(classes.reverses)]
    assert [judging.kind_of(name) for name in classes.names] == kinds and DIRECTED == 3
