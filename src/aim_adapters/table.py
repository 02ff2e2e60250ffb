"""Rows that show themselves as a table, in a terminal and in a notebook."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping
from itertools import groupby
from typing import Any, TypeVar

RowT = TypeVar("RowT", bound=tuple[Any, ...])

_WIDEST = 120  # columns of text; wider tables are shown row by row


class Table(list[RowT]):
    """A list of rows that shows itself as a table: ``print`` shows text, a notebook shows HTML.

    Args:
        rows: Named tuples of one type.
    """

    def __repr__(self) -> str:
        """Return the table as text."""
        return self.to_text(_WIDEST)

    def to_text(self, columns: int) -> str:
        """Return the table as text; row by row if it is wider than the screen.

        Args:
            columns: Width of the screen.
        """
        if not self:
            return self._nothing()
        lines = [self._header(), *self._lines()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        if sum(widths) + 2 * (len(widths) - 1) <= columns:
            return "\n".join(
                "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
                for line in lines
            )
        first, *names = lines[0]
        width = max(map(len, names))
        return "\n".join(
            "\n".join(
                [
                    f"{first} {key}",
                    *(_wrapped(f"  {name:<{width}}  ", cell, columns) for name, cell in zip(names, cells, strict=True)),
                ]
            )
            for key, *cells in lines[1:]
        )

    def _repr_html_(self) -> str:
        """Return the table as HTML, which notebooks show."""
        if not self:
            return html.escape(repr(self))
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self._header())
        body = "".join(
            "<tr>" + "".join(f'<td style="text-align: left">{html.escape(cell)}</td>' for cell in line) + "</tr>"
            for line in self._lines()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _nothing(self) -> str:
        return "(no rows)"

    def _header(self) -> list[str]:
        return list(self[0]._fields)  # type: ignore[attr-defined]

    def _lines(self) -> list[list[str]]:
        """Return the cells of each line; of what is None, a dash."""
        return [["-" if cell is None else str(cell) for cell in row] for row in self]


class BlockTable(Table[RowT]):
    """A table with one row for each block; neighboring blocks that do the same are shown as one.

    Args:
        rows: Named tuples of one type, whose first field is the index of a block.
    """

    def _nothing(self) -> str:
        return "(no blocks)"

    def _header(self) -> list[str]:
        first, *others = super()._header()
        return [f"{first}s", *others]

    def _lines(self) -> list[list[str]]:
        lines = []
        for _, group in groupby(self, key=lambda row: row[1:]):
            rows = list(group)
            first, last = rows[0][0], rows[-1][0]
            lines.append([str(first) if first == last else f"{first}-{last}", *map(str, rows[0][1:])])
        return lines


def _wrapped(name: str, value: str, columns: int) -> str:
    """Return a value with its name in front, on as many lines as the screen needs."""
    lines = textwrap.wrap(value, columns, initial_indent=name, subsequent_indent=" " * len(name))
    return "\n".join(lines) or name.rstrip()


def fact_lines(facts: Mapping[str, Any], columns: int) -> str:
    """Return facts as lines that fit the screen, each with its name in front.

    Args:
        facts: By name; of what is None or empty, a dash is shown.
        columns: Width of the screen.
    """
    width = max(map(len, facts)) + 2
    lines = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{part} {item}" for part, item in value.items() if item not in (None, []))
        text = "-" if value in (None, "") else str(value)
        lines.append(_wrapped(f"{name:<{width}}", text, columns))
    return "\n".join(lines)


def in_bytes(count: float) -> str:
    """Return a number of bytes as people read it: ``"1.4 GB"``.

    Args:
        count: The number.
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB" if count < 1000 else f"{count:,.0f} GB"
