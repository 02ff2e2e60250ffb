"""Hold the tables of the benchmark of motion to made-up rows: what lands where, and what is told to be missing."""

from __future__ import annotations

import itertools
import re

import pytest

from benchmarks.motion.claims import ALL, CLAIMS
from benchmarks.motion.experiments import EXPERIMENTS, SEEDS
from benchmarks.motion.results import Results, Run
from benchmarks.report import motion_pictures, motion_tables
from benchmarks.report.motion_tables import SECTIONS, TABLES, section
from tests.benchmarks.made_up import made_up
from tests.docs.test_pages import faults

MADE_UP = made_up()
FULL = {"motion": MADE_UP}


def only(*experiments: str, seeds: int = 3, costs: bool = False, classes: bool = False) -> dict[str, Results]:
    runs = tuple(run for run in MADE_UP.runs if run.experiment in experiments and run.seed < seeds)
    return {"motion": Results(runs, MADE_UP.classes * classes, MADE_UP.costs * costs)}


def cells(text: str, first: str) -> list[str]:
    """Return the cells of the row that begins with a word."""
    (row,) = re.findall(rf"^\| {re.escape(first)} \|(.*)\|$", text, re.MULTILINE)
    return [cell.strip() for cell in row.split("|")]


def test_numbers_land_in_their_cells() -> None:
    changed = [
        run._replace(what=81.0, order=61.0) if (run.way, run.variant) == ("joint", "order") else run
        for run in MADE_UP.runs
    ]
    results = {"motion": MADE_UP._replace(runs=tuple(changed))}
    aim = ["78.6 ± 0.5", "92.6 ± 0.5", "2.70", "81.0 ± 0.0", "61.0 ± 0.0", "95.0 ± 0.0"]
    for name in ("ladder", "layers", "ratio", "pretraining", "input_adapter", "ways"):
        assert cells(section(name, results), "AIM") == aim
    assert cells(section("layers", results), "AIM (bottom half)")[:2] == ["65.6 ± 0.5", "80.6 ± 0.5"]
    assert cells(section("data", results), "84") == ["1 %", "28.8 ± 0.2", "35.8 ± 0.2", "10.9 ± 0.2"]
    assert cells(section("data", results), "8,208") == ["100 %", "78.6 ± 0.5", "85.6 ± 0.5", "70.6 ± 0.5"]
    assert cells(section("longer", results), "AIM") == ["78.6 ± 0.5", "80.6 ± 0.5"]
    assert cells(section("frames", results), "AIM at 32 frames") == ["86.6 ± 0.5"]
    assert cells(section("backbones", results), "spatial adapters on CLIP")[:3] == ["45.2 ± 0.2", "87.2 ± 0.2", ""]
    assert cells(section("execution", results), "AIM (fp8)") == ["78.6 ± 0.5", "92.6 ± 0.5", "30.0", "2.00"]
    assert cells(section("defaults", results), "rate 0.0003") == ["1,720", "60.2 ± 0.2", "92.2 ± 0.2"]
    assert cells(section("defaults", results), "epochs 40") == ["3,440", "55.2 ± 0.2", ""]
    tuned = cells(section("costs", results), "full fine-tuning (space-time)")
    assert tuned == ["24.00", "100.0 %", "60.0", "4.00", "9.0", "10.0"]
    classes = section("classes", results)
    assert cells(classes, "pan left") == ["15.6", "15.6", "80.6", "73.6", "85.6", "+58.0", "−7.0"]
    assert classes.index("| pan left |") < classes.index("| zoom in, then out |")  # the larger gain first
    assert cells(motion_tables.motion_runs(results), "`ladder`") == ["70 of 70", "23.3", "Some GPU", "`abc`"]


def test_ways_side_by_side() -> None:
    text = motion_tables.ways(FULL)
    assert cells(text, "AIM (top half)") == [
        "78.1 ± 0.5",
        "80.1 ± 0.5",
        "92.6 ± 0.5",
        "2.70",
        "20.0",
        "1.00",
        "9.0",
        "10.0",
    ]
    averaged = cells(text, "AIM (mean of two runs' weights)")  # costs what AIM does
    assert averaged == ["82.6 ± 0.5", "84.6 ± 0.5", "95.6 ± 0.5", "2.70", "30.0", "2.00", "9.0", "10.0"]
    assert "not measured yet" not in text and "Not run yet" not in text and "](assets/motion-ways.svg)" in text


def test_verdicts_are_told() -> None:
    text = motion_tables.motion_verdicts(FULL)
    assert text.startswith(f"{len(ALL)} claims; holds: {len(ALL)}.\n")
    assert SECTIONS.keys() - CLAIMS.keys() == {"rates"}  # about which nothing is claimed
    for name, claims in CLAIMS.items():
        shown = section(name, FULL)
        assert all(f"- **Holds** ({claim.place}): {claim.says}" in shown and claim.says in text for claim in claims)
    some = motion_tables.motion_verdicts(only("ladder"))
    assert "not run: " in some and "| Figure 3 | not run |" in some and "| Table 1 | holds |" in some


def test_without_results_the_command_is_told() -> None:
    assert TABLES.keys() == {"ways", "motion_verdicts", "motion_runs", *(f"motion_{name}" for name in SECTIONS)}
    for make in TABLES.values():
        assert re.fullmatch(r"Not measured yet: run `python -m benchmarks\.motion\.run [^`]+`\.", make({}))
    named = {name for parts in SECTIONS.values() for name in parts.experiments}
    assert named == EXPERIMENTS.keys()


def test_what_is_missing_is_named_and_left_empty() -> None:
    def kept(run: Run) -> bool:
        gone = {("spatial", "appearance", seed) for seed in SEEDS}
        return (run.way, run.variant, run.seed) not in {*gone, ("full", "order", 1), ("joint", "order", 0)} and (
            run.way != "frozen"
        )

    costs = tuple(row for row in MADE_UP.costs if row.way != "frozen")
    results = {"motion": MADE_UP._replace(runs=tuple(filter(kept, MADE_UP.runs)), costs=costs)}
    text = section("ladder", results)
    assert cells(text, "spatial adapters") == ["45.6 ± 0.5", "", "2.70", "95.0 ± 0.0", "70.0 ± 0.0", ""]
    assert cells(text, "full fine-tuning (space)")[0] == "45.7 ± 0.6 (4 of 5)"
    assert "| frozen image model |" not in text
    assert (
        "Not run yet: frozen image model, order; frozen image model, appearance; spatial adapters, appearance; "
        "AIM, order (4 of 5 seeds); full fine-tuning (space), order (4 of 5 seeds)."
    ) in text
    assert "- **Not run** (Table 1): Spatial adapters are better" in text
    assert "Costs not measured yet: frozen image model." in motion_tables.ways(results)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_part_of_the_results_makes_pages(experiment: str) -> None:
    for seeds, costs, classes in itertools.product((1, 3), (False, True), (False, True)):
        results = only(experiment, seeds=seeds, costs=costs, classes=classes)
        made = [make(results) for make in TABLES.values()]
        assert [faults(f"\n{text}\n") for text in made] == [[]] * len(made)
        for name, (points_of, _) in motion_pictures.PICTURES.items():
            assert (f"](assets/{name})" in "".join(made)) == bool(points_of(results))
