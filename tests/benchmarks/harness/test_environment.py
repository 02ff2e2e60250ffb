"""Hold the record of where a benchmark ran to what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.harness import environment


def test_the_commit_that_is_named_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIM_COMMIT", "abc+changes")
    assert environment.commit() == "abc+changes"
    monkeypatch.delenv("AIM_COMMIT")
    assert environment.commit() != "abc+changes"
    monkeypatch.setattr(environment, "ROOT", tmp_path)  # no history
    assert environment.commit() == "unknown"
