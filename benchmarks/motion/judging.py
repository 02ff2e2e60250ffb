"""How a claim is judged: figures with their intervals, the limits that they have to keep, and a verdict.

A figure is a sum of accuracies, such as one way's less another's, taken seed by seed: with a seed, ways see the clips
in the same order. Its interval is that of Student's t, 5 % on either side. A figure keeps its limits where the whole
interval lies within, breaks them where all of it lies outside, and decides nothing otherwise. A claim holds where all
of its figures keep their limits, and does not where one breaks them.

How often this errs by chance, as far as seeds scatter normally: a claim of one figure that is true or false by a hair
gets the wrong verdict in at most 5 % of cases; one that is true or false by more, in fewer. A claim of several figures
is wrongly said to hold in at most 5 %, since all have to agree, and wrongly said not to hold in up to 5 % for each.
Few seeds decide little: half an interval is 1.7 standard deviations of a difference of three seeds, 0.95 of five.

Seeds tell nothing about the test clips, which are the same in all runs: what is judged is how ways do on these 1,200.
With others an accuracy of 80 % would move by 1.2 points (its standard error), by more as clips of a scene share their
difficulty; a difference by less, as ways mostly err on the same clips. So ways count as equal within `MARGIN`, and
seeds that agree to a clip count as one clip apart.
"""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

from benchmarks.motion.experiments import CLIPS, FRAMES, Job
from benchmarks.motion.results import Costs, Results, Run

HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "does not hold", "undecided", "not run"
MARGIN = 2.0  # points of accuracy up to which ways count as equal
TEST_CLIPS = 1200
NOISE = 0.03  # share by which a time, measured once, may be off
TIMES = ("step_ms", "inference_ms")
# Student's t that 5 % exceed, for 1, 2, ... degrees of freedom; for more than these, the last is on the safe side.
QUANTILES = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)
AGAIN = ("longer", "rates")  # experiments whose runs differ from those of others in nothing that a `Cell` has
# Means over classes of "order": those that another is the reverse of in time, and those that are their own reverse.
DIRECTED, ITSELF = "classes in pairs", "classes back and forth"


class Cell(NamedTuple):
    """Which runs, and which of their numbers.

    Attributes:
        way: Name of the way.
        variant: Of the task.
        measure: A column in percent, or `DIRECTED` or `ITSELF`, a mean over classes.
        frames: Frames of a clip.
        clips: Clips that are trained on.
        backbone: Name of the image model.
        again: Experiment in `AGAIN`; "": any other.
    """

    way: str
    variant: str = "order"
    measure: str = "accuracy"
    frames: int = FRAMES
    clips: int = CLIPS
    backbone: str = "dinov2-small"
    again: str = ""


def cell_of(job: Job) -> Cell:
    """Return the runs of a job."""
    again = job.experiment if job.experiment in AGAIN else ""
    return Cell(job.name, job.variant, "accuracy", job.frames, job.clips, job.backbone, again)


class Interval(NamedTuple):
    """A figure, and the interval that it is in."""

    value: float
    low: float
    high: float


def kind_of(name: str) -> str:
    """Return which kind a class of "order" is of."""
    return ITSELF if ", then " in name else DIRECTED


class Evidence:
    """Results, by what claims and tables ask for.

    Args:
        results: The rows.
    """

    def __init__(self, results: Results) -> None:
        self.runs: dict[Cell, dict[int, Run]] = {}
        for run in results.runs:
            again = run.experiment if run.experiment in AGAIN else ""
            cell = Cell(run.way, run.variant, "", run.frames, run.clips, run.backbone, again)
            self.runs.setdefault(cell, {})[run.seed] = run
        self.classes: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
        for row in results.classes:
            seeds = self.classes.setdefault((row.variant, row.way), {})
            seeds.setdefault(row.seed, {})[row.class_] = row.accuracy
        self.costs: dict[tuple[str, str], Costs] = {(row.way, row.backbone): row for row in results.costs}

    def values(self, cell: Cell) -> dict[int, float]:
        """Return the number of each seed that ran."""
        if cell.measure not in (DIRECTED, ITSELF):
            found = self.runs.get(cell._replace(measure=""), {})
            return {seed: getattr(run, cell.measure) for seed, run in found.items()}
        seeds = self.classes.get((cell.variant, cell.way), {})
        kinds = {
            seed: [score for name, score in scores.items() if kind_of(name) == cell.measure]
            for seed, scores in seeds.items()
        }
        return {seed: statistics.fmean(scores) for seed, scores in kinds.items() if scores}


class Difference(NamedTuple):
    """A sum of percentages, seed by seed, in points.

    Attributes:
        terms: What is added, by its factor.
        low: What it has to be above.
        high: What it has to be below.
        less: A constant that is subtracted, in percent.
    """

    terms: tuple[tuple[int, Cell], ...]
    low: float = -math.inf
    high: float = math.inf
    less: float = 0.0

    def interval(self, evidence: Evidence) -> Interval | None:
        """Return the mean over seeds that all terms have, and its interval; None of fewer than two."""
        found = [(factor, evidence.values(cell)) for factor, cell in self.terms]
        seeds = sorted(set.intersection(*(set(values) for _, values in found)))
        sums = [sum(factor * values[seed] for factor, values in found) - self.less for seed in seeds]
        return None if len(sums) < 2 else interval_of(sums)


class Ratio(NamedTuple):
    """What a way costs, as a multiple of another's.

    Attributes:
        column: Of `benchmarks.motion.results.Costs`.
        way: Name of the way.
        against: Name of the other.
        high: What it has to be below.
        low: What it has to be above.
    """

    column: str
    way: str
    against: str
    high: float = 1.0
    low: float = -math.inf

    def interval(self, evidence: Evidence) -> Interval | None:
        """Return the ratio, and how far off it may be; None where one is not measured."""
        both = [evidence.costs.get((way, Cell("").backbone)) for way in (self.way, self.against)]
        if None in both:
            return None
        above, below = (getattr(costs, self.column) for costs in both)
        noise = NOISE if self.column in TIMES else 0.0
        return Interval(above / below, (1 - noise) * above / below, (1 + noise) * above / below)


class Claim(NamedTuple):
    """Something said, by the paper or by this project, that results can bear out or not.

    Attributes:
        name: Of the claim.
        place: Where it is said.
        says: What is said, with the figures that it was said of.
        figures: What has to keep its limits.
    """

    name: str
    place: str
    says: str
    figures: tuple[Difference | Ratio, ...]


class Judgment(NamedTuple):
    """A verdict on a claim, with the interval of each of its figures, where they ran."""

    verdict: str
    intervals: tuple[Interval | None, ...]


def interval_of(values: list[float]) -> Interval:
    """Return the mean of values, two or more, and the interval of Student's t with 5 % on either side."""
    count = len(values)
    deviation = max(statistics.stdev(values), 100 / TEST_CLIPS)
    half = QUANTILES[min(count - 1, len(QUANTILES)) - 1] * deviation / math.sqrt(count)
    mean = statistics.fmean(values)
    return Interval(mean, mean - half, mean + half)


def judge(claim: Claim, evidence: Evidence) -> Judgment:
    """Judge a claim by all of its figures; by none where one of them did not run."""
    intervals = tuple(figure.interval(evidence) for figure in claim.figures)
    each = [decide(found, figure) for found, figure in zip(intervals, claim.figures, strict=True)]
    verdict = next((word for word in (NOT_RUN, FAILS, UNDECIDED) if word in each), HOLDS)
    return Judgment(verdict, intervals)


def decide(found: Interval | None, figure: Difference | Ratio) -> str:
    """Return the verdict on one figure."""
    if found is None:
        return NOT_RUN
    if figure.low < found.low and found.high < figure.high:
        return HOLDS
    return FAILS if found.high < figure.low or figure.high < found.low else UNDECIDED
