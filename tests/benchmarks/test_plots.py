"""Hold the page of benchmarks and its picture to the results, and the generator to what it says."""

from __future__ import annotations

import copy
import html
import json
import re
from pathlib import Path

import pytest

from benchmarks import plots

TEXT = plots.PAGE.read_text(encoding="utf-8")
RESULTS = plots.load()
NUMBER = re.compile(r"\d+\.\d+")


def test_the_page_is_what_the_results_say() -> None:
    assert plots.fill(TEXT, RESULTS) == TEXT, "run python -m benchmarks.plots --write"
    assert sorted(name for name, _ in plots.MARKED.findall(TEXT)) == sorted(make.__name__ for make in plots.TABLES)


def test_a_number_of_the_text_stands_in_a_table() -> None:
    tables = "\n".join(make(RESULTS) for make in plots.TABLES)
    written = set(NUMBER.findall(plots.MARKED.sub("", TEXT)))
    assert len(written) > 5
    assert written <= set(NUMBER.findall(tables))


def test_the_picture_is_what_the_results_say() -> None:
    points = json.dumps(plots.lines(RESULTS["temporal_attention"]))
    assert points in html.unescape(plots.PICTURE.read_text(encoding="utf-8")), "run python -m benchmarks.plots"


def test_drawing_is_repeatable_and_white(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pictures = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for path in pictures:
        plots.draw(RESULTS["temporal_attention"], path)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert "fill: #ffffff" in pictures[0].read_text(encoding="utf-8")


def test_the_floor_is_the_time_of_a_copy() -> None:
    result = RESULTS["temporal_attention"]
    points = plots.lines(result)
    shares = [row["peers"]["triton"]["share_of_copy"] for row in plots.measured(result, "main")]
    assert [floor / ours for (_, ours), (_, floor) in zip(points["triton"], points["copy"], strict=True)] == (
        pytest.approx(shares)
    )


def test_results_may_be_missing(tmp_path: Path) -> None:
    assert plots.load(tmp_path) == {}
    page = plots.fill(TEXT, {})
    assert page.count("Not measured.") == len(plots.TABLES)
    some = {name: RESULTS[name] for name in ("train_step", "wrap_time")}
    page = plots.fill(page, some)
    assert "`wrap_time`" in page
    assert "`checkpoint_io`" not in page
    assert plots.fill(page, RESULTS) == TEXT


def test_a_peer_that_failed_is_left_empty() -> None:
    result = copy.deepcopy(RESULTS["temporal_attention"])
    row = next(plots.measured(result, "main"))
    row["peers"]["flex"] = {"error": "no"}
    del row["speedup"]["flex"]
    assert "|  |" in plots.attention({"temporal_attention": result})
    assert len(plots.lines(result)["flex"]) == len(plots.lines(result)["triton"]) - 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00022, "0.220"), (0.0829951, "83.0"), (0.115, "115"), (5.184, "5,184"), (-0.02726, "-27.3")],
)
def test_milliseconds(seconds: float, text: str) -> None:
    assert plots.ms(seconds) == text
