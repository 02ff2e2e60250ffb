"""Rows about blocks show themselves as text and as HTML, and are otherwise a list."""

from __future__ import annotations

import copy
import pickle
from html.parser import HTMLParser
from typing import Any, NamedTuple

import pytest

from aim_adapters.table import BlockTable


class Row(NamedTuple):
    block: int
    way: str
    why: str


def table(*rows: tuple[int, str, str]) -> BlockTable[Row]:
    return BlockTable(Row(*row) for row in rows)


class Cells(HTMLParser):
    """Collect the text of every cell, line by line."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.lines: list[list[str]] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in ("table", "thead", "tbody", "tr", "th", "td")
        if tag == "tr":
            self.lines.append([])
        if tag in ("th", "td"):
            self.lines[-1].append("")
            self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = "" if tag == self.inside else self.inside

    def handle_data(self, data: str) -> None:
        assert self.inside
        self.lines[-1][-1] += data


# Text


def test_columns_have_the_names_of_the_fields_and_are_aligned() -> None:
    rows = table((0, "fused", "plain layers"), (1, "-", "hooks"))
    assert repr(rows) == str(rows) == (
        "blocks  way    why\n"
        "0       fused  plain layers\n"
        "1       -      hooks"
    )  # fmt: skip


def test_neighbors_that_are_equal_share_a_line() -> None:
    rows = table((0, "a", "x"), (1, "a", "x"), (2, "a", "x"), (3, "b", "x"), (4, "a", "x"), (7, "a", "x"))
    assert repr(rows) == (
        "blocks  way  why\n"
        "0-2     a    x\n"
        "3       b    x\n"
        "4-7     a    x"
    )  # fmt: skip
    assert len(rows) == 6


@pytest.mark.parametrize(("width", "stacked"), [(105, False), (106, True)])
def test_wider_than_120_columns_each_line_is_a_paragraph(width: int, stacked: bool) -> None:
    why = "y" * width
    rows = table((0, "fused", why), (1, "fused", why), (2, "-", "z"))
    if stacked:
        assert repr(rows) == f"blocks 0-1\n  way  fused\n  why  {why}\nblocks 2\n  way  -\n  why  z"
    else:
        assert repr(rows) == f"blocks  way    why\n0-1     fused  {why}\n2       -      z"


def test_no_rows_are_no_blocks() -> None:
    assert repr(BlockTable[Row]()) == "(no blocks)"
    assert BlockTable[Row]()._repr_html_() == "(no blocks)"


# HTML


def test_notebook_shows_the_same_cells() -> None:
    rows = table((0, "a", "x" * 200), (1, "a", "x" * 200), (2, "-", "y"))
    assert Cells(rows._repr_html_()).lines == [
        ["blocks", "way", "why"], ["0-1", "a", "x" * 200], ["2", "-", "y"],
    ]  # fmt: skip


def test_what_looks_like_markup_is_text() -> None:
    why = "<script>alert('\"&amp;')</script>"
    html = table((0, "<b>", why))._repr_html_()
    assert "<script" not in html and "<b>" not in html
    assert Cells(html).lines[1] == ["0", "<b>", why]


# Otherwise a list


def test_it_is_a_list_of_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table((0, "a", "x"), (1, "b", "y"))
    assert rows == [Row(0, "a", "x"), Row(1, "b", "y")] == [(0, "a", "x"), (1, "b", "y")]
    assert rows != [Row(0, "a", "x")]
    assert isinstance(rows, list)
    assert (rows[1].way, [row.why for row in rows]) == ("b", ["x", "y"])
    rows.append(Row(2, "b", "y"))
    assert repr(rows).endswith("1-2     b    y")
    for copied in (copy.deepcopy(rows), pickle.loads(pickle.dumps(rows))):
        assert type(copied) is BlockTable and copied == rows
    assert capsys.readouterr() == ("", "")  # it shows itself only where it is asked to
