"""Each claim on made-up rows: that any of its figures can bear it out, break it, or leave it open; and the record."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.motion import claims, programs, results
from benchmarks.motion.claims import ALL
from benchmarks.motion.experiments import EXPERIMENTS, VARIANTS, way_and_rate
from benchmarks.motion.judging import (
    AGAIN,
    DIRECTED,
    FAILS,
    HOLDS,
    ITSELF,
    NOT_RUN,
    UNDECIDED,
    Cell,
    Claim,
    Difference,
    Evidence,
    Ratio,
    cell_of,
    judge,
    kind_of,
)
from benchmarks.motion.programs import classes_of
from benchmarks.motion.results import Results, append_rows, load
from benchmarks.motion.ways import DINOV2_RATES, rate_of
from tests.benchmarks.made_up import made_up
from tests.benchmarks.scenes import scenes

MADE_UP = made_up()
FIGURES = [
    pytest.param(claim, figure, id=f"{claim.name}-{number}")
    for claim in ALL
    for number, figure in enumerate(claim.figures)
]
Change = Callable[[float, int], float | None]


def changed(figure: Difference | Ratio, change: Change) -> Evidence:
    """Return made-up rows with the first number of a figure changed, seed by seed; None: without that row."""
    if isinstance(figure, Ratio):
        costs = []
        for row in MADE_UP.costs:
            value = change(getattr(row, figure.column), 0) if row.way == figure.way else getattr(row, figure.column)
            costs += [] if value is None else [row._replace(**{figure.column: value})]
        return Evidence(MADE_UP._replace(costs=tuple(costs)))
    cell = figure.terms[0][1]
    by_class = cell.measure in (DIRECTED, ITSELF)
    column = "accuracy" if by_class else cell.measure

    def meant(row: results.Run | results.ClassScore) -> bool:
        if isinstance(row, results.ClassScore):
            return (row.way, row.variant, kind_of(row.class_)) == cell[:3]
        again = row.experiment if row.experiment in AGAIN else ""
        return (row.way, row.variant, row.frames, row.clips, row.backbone, again) == (*cell[:2], *cell[3:])

    rows = []
    for row in MADE_UP.classes if by_class else MADE_UP.runs:
        value = change(getattr(row, column), row.seed) if meant(row) else getattr(row, column)
        rows += [] if value is None else [row._replace(**{column: value})]
    return Evidence(MADE_UP._replace(**{"classes" if by_class else "runs": tuple(rows)}))


@pytest.mark.parametrize("claim", ALL, ids=lambda claim: claim.name)
def test_all_claims_can_hold_and_need_results(claim: Claim) -> None:
    assert judge(claim, Evidence(MADE_UP)).verdict == HOLDS
    assert judge(claim, Evidence(Results())).verdict == NOT_RUN


@pytest.mark.parametrize(("claim", "figure"), FIGURES)
def test_every_figure_can_break_its_claim(claim: Claim, figure: Difference | Ratio) -> None:
    def worse(value: float, seed: int) -> float:
        return 20 * value if isinstance(figure, Ratio) else value + (-90 if figure.low > -90 else 90)

    def scattered(value: float, seed: int) -> float:
        return value + 60 * (seed - 2)

    assert judge(claim, changed(figure, worse)).verdict == FAILS
    assert judge(claim, changed(figure, lambda value, seed: None)).verdict == NOT_RUN
    if isinstance(figure, Difference):
        assert judge(claim, changed(figure, scattered)).verdict == UNDECIDED
        assert judge(claim, changed(figure, lambda value, seed: None if seed else value)).verdict == NOT_RUN


def test_limits_from_above_are_asked_too() -> None:
    flat = next(claim for claim in ALL if claim.name == "ratio-order")
    assert judge(flat, changed(flat.figures[1], lambda value, seed: value + 9)).verdict == FAILS


def test_claims_are_of_runs_that_there_are() -> None:
    jobs = [job for jobs in EXPERIMENTS.values() for job in jobs]
    ran = {cell_of(job) for job in jobs}
    assert len(ran) == len(jobs), "two jobs that a cell does not tell apart: name the experiment of one in AGAIN"
    asked = {cell for claim in ALL for each in claim.figures if isinstance(each, Difference) for _, cell in each.terms}
    assert {cell._replace(measure="accuracy") for cell in asked} <= ran
    assert len({claim.name for claim in ALL}) == len(ALL)
    names = {job.way if job.rate else job.name for job in jobs if job.experiment != "defaults"}
    assert claims.NAMES.keys() == names


def test_each_way_has_the_best_of_the_rates_that_were_tried() -> None:
    found: dict[tuple[str, str], dict[float, float]] = {}
    for run in load().runs:
        if run.experiment == "rates" and run.backbone == "dinov2-small":
            found.setdefault((way_and_rate(run.way)[0], run.variant), {})[run.lr] = run.accuracy
    assert found.keys() == set(itertools.product(DINOV2_RATES, VARIANTS))
    for (way, variant), accuracy in found.items():
        assert accuracy[rate_of(way, variant)] == max(accuracy.values()), (way, variant)


def test_bounds_are_those_of_the_task() -> None:
    assert tuple(claims.BOUNDS) == programs.VARIANTS
    for variant in ("order", "composition"):
        assert claims.BOUNDS[variant] == pytest.approx(100 * classes_of(variant, scenes()).order_blind_bound)
    shown = json.loads(Path(claims.__file__).with_name("photographs.json").read_text(encoding="utf-8"))
    count = sum(row.get("appearance", False) for row in shown)
    assert claims.BOUNDS["appearance"] == pytest.approx(100 * count / (count + 3))


def test_figures_in_words() -> None:
    figure = claims.CLAIMS["data"][1].figures[1]
    assert claims.words_of(figure) == (
        "(AIM at 84 clips − full fine-tuning (space-time) at 84 clips, order) − "
        "(AIM − full fine-tuning (space-time), order)"
    )
    found = figure.interval(Evidence(MADE_UP))
    assert found is not None and claims.found_words(figure, found) == "+9.9 (+9.8 to +10.0)"
    ratio = Ratio("step_ms", "top", "joint")
    assert claims.words_of(ratio) == "step_ms: AIM (top half) / AIM"
    assert claims.found_words(ratio, ratio.interval(Evidence(MADE_UP))) == "0.67 (0.65 to 0.69)"
    assert claims.asked_words(Difference((), low=-2, high=2)) == "> −2, < 2" and claims.asked_words(ratio) == "< 1"
    blind = Difference(((1, Cell("lora")),), less=200 / 3)
    assert claims.words_of(blind) == "LoRA, order − 66.7"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert claims.main(["--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("NOT RUN: ") == len(ALL)
    rows = [run._asdict() for run in MADE_UP.runs if run.way in ("spatial", "frozen")]
    append_rows(tmp_path / "runs.csv", results.COLUMNS, rows)
    assert claims.main(["--results", str(tmp_path)]) == 0
    assert "HOLDS: Spatial adapters are better" in capsys.readouterr().out
    with (tmp_path / "runs.csv").open("a") as file:
        file.write("ladder,order")
    assert claims.main(["--results", str(tmp_path)]) == 1
    assert "cells, expected 16" in capsys.readouterr().err


def test_rows_are_of_the_experiments_as_they_are() -> None:
    jobs = {job.key(seed): job for jobs in EXPERIMENTS.values() for job in jobs for seed in job.seeds}
    for run in load().runs:
        job = jobs[run.key]
        assert (run.steps, run.batch, run.lr) == (job.steps, job.batch, job.learning_rate), "delete the row: it is old"


def test_verdicts_are_the_recorded_ones() -> None:
    recorded = json.loads(claims.VERDICTS.read_text(encoding="utf-8"))
    assert claims.verdicts(load()) == recorded, "python -m benchmarks.report.plots --write"
