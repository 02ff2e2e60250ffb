"""Hold the commands that documentation, code and results name to the benchmarks that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.harness import RESULTS, ROOT

NAMED = re.compile(r"(?<!\.)\bbenchmarks((?:\.\w+)+)")
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PATHS = [*PAGES, *(ROOT / "docs").rglob("*.md"), *RESULTS.glob("*.json"), *(ROOT / "benchmarks").rglob("*.py")]


def is_module(name: str) -> bool:
    """Return whether a dotted name below ``benchmarks`` is a file or a folder, or a name in a file."""
    place = ROOT / "benchmarks" / Path(*name.strip(".").split("."))
    return place.is_dir() or any(each.with_suffix(".py").exists() for each in (place, place.parent))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_benchmark_that_is_named_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("benchmarks.md", "")
    assert [name for name in NAMED.findall(text) if not is_module(name)] == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_command_has_its_main(path: Path) -> None:
    for name in re.findall(r"python -m benchmarks\.([\w.]*\w)", path.read_text(encoding="utf-8")):
        source = (ROOT / "benchmarks" / Path(*name.split("."))).with_suffix(".py").read_text(encoding="utf-8")
        assert 'if __name__ == "__main__":' in source


def test_what_is_not_there_is_noticed() -> None:
    assert is_module(".timing") and is_module(".timing.train_step") and is_module(".timing.train_step.TASK")
    assert not is_module(".train_step") and not is_module(".timing.train_steps")
