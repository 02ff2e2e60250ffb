"""Hold docs/architecture.md to the source: its rooms are the layers that imports keep, and the names in it exist."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "aim_adapters"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PICTURE = (ROOT / "docs" / "assets" / "rooms.svg").read_text(encoding="utf-8")
# Names of Python and of PyTorch, and variables of whoever calls.
FOREIGN = {"None", "backward", "forward", "loss", "name", "parameters", "requires_grad", "state_dict", "zero_grad"}


def layers() -> list[list[str]]:
    """Return the rooms of each layer, the highest first, as import-linter holds them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'type = "layers"\n.*?\nlayers = \[\n(.*?)\n\]', text, re.DOTALL)
    assert found is not None
    named = [line.split(" | ") for line in re.findall(r'"(.+)"', found.group(1))]
    return [layer for layer in named if layer != ["__main__"]]  # the command as a module; no room


@functools.cache
def names() -> set[str]:
    """Return every name that the source defines: functions, classes, arguments, attributes, modules."""
    found = set(FOREIGN)
    for file in SOURCE.rglob("*.py"):
        found |= {file.stem, file.parent.name}
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.arg):
                found.add(node.arg)
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.Name):
                found.add(node.id)
    return found


def test_the_table_holds_the_rooms_from_above() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    expected = [sorted(layer) for layer in layers()]
    assert len(rows) == sum(map(len, expected))
    for layer in expected:
        assert sorted(rows[: len(layer)]) == layer
        del rows[: len(layer)]


def test_the_picture_holds_the_rooms() -> None:
    shown = set(re.findall(r">(\w+)</text>", PICTURE))
    assert {room for layer in layers() for room in layer} <= shown
    assert {file.stem for file in (SOURCE / "core").glob("[!_]*.py")} <= shown


@pytest.mark.parametrize("span", sorted(set(re.findall(r"`([^`\n]+)`", PAGE.partition("\n## A clip")[2]))))
def test_what_the_walks_name_exists(span: str) -> None:
    if span.endswith(".py"):
        assert (SOURCE / span).is_file()
    elif re.fullmatch(r"[\w.]+(\([^)]*\))?", span):
        assert not [part for part in span.partition("(")[0].split(".") if part not in names()]
