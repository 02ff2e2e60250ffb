"""Hold what pictures of the benchmark of motion show, and their words, to made-up rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.motion.results import Results
from benchmarks.report import motion_pictures
from tests.benchmarks.made_up import made_up

MADE_UP = made_up()


def test_points_are_means_and_deviations() -> None:
    results = {"motion": MADE_UP}
    ladder = motion_pictures.ladder_points(results)
    assert [*ladder] == ["order", "appearance"] and len(ladder["order"]) == 7
    assert ladder["order"]["spatial adapters"] == (45.6, 0.5184) and ladder["appearance"]["AIM"] == (92.6, 0.5184)
    data = motion_pictures.data_points(results)
    assert [*data] == ["joint", "conv", "full-space-time"]
    assert data["joint"][-1] == (8208, 78.6, 0.5184) and data["joint"][0][0] == 84
    assert motion_pictures.ways_points(results)["full-space-time"] == (60.0, 70.6, 0.5184)


def test_words_tell_the_numbers() -> None:
    words = [motion_pictures.shown(name, {"motion": MADE_UP}) for name in motion_pictures.PICTURES]
    assert "on order, frozen image model 20.6, spatial adapters 45.6" in words[0] and "AIM 92.6" in words[0]
    assert "AIM rises from 28.8 with 84 clips to 78.6 with 8,208" in words[1]
    assert "full fine-tuning (space-time) 70.6 at 60 ms" in words[2]


def test_nothing_is_drawn_of_nothing() -> None:
    order = tuple(run for run in MADE_UP.runs if run.variant == "order" and run.clips == 8208)
    for results in ({}, {"motion": Results(runs=order)}):
        for name, (points_of, _) in motion_pictures.PICTURES.items():
            assert points_of(results) == {} and motion_pictures.shown(name, results) == ""


@pytest.mark.parametrize("name", motion_pictures.PICTURES)
def test_few_rows_can_be_drawn(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = tuple(run for run in MADE_UP.runs if run.way in ("joint", "conv") and run.seed == 0)
    results = {"motion": MADE_UP._replace(runs=runs)}
    points_of, draw = motion_pictures.PICTURES[name]
    points = points_of(results)
    draw(results, points, tmp_path / name)
    assert "prefers-color-scheme: dark" in (tmp_path / name).read_text(encoding="utf-8")
