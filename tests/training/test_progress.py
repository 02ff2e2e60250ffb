"""The progress bar of a run."""

from __future__ import annotations

import sys

import pytest

from aim_adapters.training.progress import Progress


@pytest.mark.parametrize("columns", [44, 60, 90, 130])
def test_the_time_that_is_left_is_never_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = Progress(12345, shown=True)
    bar.advance(4000, loss=5.123, rate=1e-3, clips=64, seconds=0.05, waited=0.01)
    bar._bar.refresh()
    bar.close()
    shown = capsys.readouterr().err
    assert "4000/12345" in shown
    assert "-:--:--" in shown
    assert "…" not in shown
