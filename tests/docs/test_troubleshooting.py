"""Messages that docs/troubleshooting.md quotes are those that the source raises, with ``…`` for what changes."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTES = [quote.replace("\n> ", " ").removeprefix("> ") for quote in re.findall(r"(?m)(?:^> .+\n)+", PAGE)]
# Rows of the two tables whose first column is a message.
TABLES = [part.partition("\n\n")[0] for part in re.split(r"^\|---\|---\|\n", PAGE, flags=re.MULTILINE)[2:]]
ROWS = [row for table in TABLES for row in re.findall(r"^\| (.+?) \| .+ \|$", table, re.MULTILINE)]


@functools.cache
def messages() -> tuple[str, ...]:
    """Return every text in the source, with ``…`` for the parts that are formatted."""
    found = []
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def test_the_tables_are_found() -> None:
    assert len(TABLES) == 2
    assert len(ROWS) > 12


@pytest.mark.parametrize("quote", [*QUOTES, *ROWS])
def test_message_is_one_of_the_source(quote: str) -> None:
    # A message may be put together from several texts, one of which names what is expected or what helps.
    parts = [part for part in quote.split("…") if len(part) > 12]
    assert parts
    missing = [part for part in parts if not any(part.strip(" :.;\n") in message for message in messages())]
    assert not missing
