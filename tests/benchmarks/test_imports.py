"""Hold the imports of benchmarks to their direction, and their files to a length that can be read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from benchmarks.harness import RESULTS, ROOT

# Which other rooms each may import.
ROOMS: dict[str, set[str]] = {
    "harness": set(),
    "timing": {"harness"},
    "checks": {"harness"},
    "report": {"harness", "motion"},
    "motion": {"harness"},
}
SOURCES = sorted((ROOT / "benchmarks").rglob("*.py"))
TESTS = sorted(Path(__file__).parent.rglob("*.py"))


def name_of(path: Path) -> str:
    """Return the module that a file is."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in SOURCES}


def imported(source: str) -> Iterator[str]:
    """Yield what some code imports of the benchmarks, wherever in it: a module, or the package that gives a name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "benchmarks")
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if node.level or module.split(".")[0] == "benchmarks":
                inner = (f"{module}.{alias.name}" for alias in node.names)
                yield from (name if name in MODULES else module for name in inner)


GRAPH = {name: set(imported(path.read_text(encoding="utf-8"))) for name, path in MODULES.items()}


def room_of(module: str) -> str:
    """Return the room that a module is in, "" for the whole package."""
    return [*module.split("."), ""][1]


def test_every_form_of_import_is_seen() -> None:
    source = """
import json
import benchmarks.report.plots as p
from benchmarks.harness.clocks import wait
from benchmarks.harness import write
from . import peers

def late():
    from benchmarks.timing import steps
"""
    assert set(imported(source)) == {
        "benchmarks.report.plots",
        "benchmarks.harness.clocks",
        "benchmarks.harness",
        ".",
        "benchmarks.timing.steps",
    }
    assert set().union(*GRAPH.values()) <= MODULES.keys()  # none is relative, and each is there
    assert {room_of(name) for name in MODULES} == {"", *ROOMS}


def test_imports_have_no_circle() -> None:
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
    TopologicalSorter(GRAPH).prepare()


@pytest.mark.parametrize("name", MODULES)
def test_imports_flow_down(name: str) -> None:
    room, taken = room_of(name), GRAPH[name]
    assert {room_of(module) for module in taken} - {room} <= ROOMS.get(room, set())
    # What others may take of the harness is what its `__init__` names.
    of_harness = {module for module in taken if room_of(module) == "harness"}
    assert room == "harness" or of_harness <= {"benchmarks.harness"}


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", [path for path in TESTS if path.parent.name in ROOMS], ids=lambda path: path.stem)
def test_a_test_mirrors_what_it_tests(path: Path) -> None:
    assert (ROOT / "benchmarks" / path.parent.name / path.name.removeprefix("test_")).exists()


def test_results_can_be_read() -> None:
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) < 8000
