"""What a run says while it runs."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any

_FACTS = 80  # columns that steps, facts and the time that is left take


class Progress:
    """A progress line: a bar on a terminal, a line now and then elsewhere, nothing if not asked for.

    Args:
        steps: Steps of the whole run.
        shown: Whether this process shows anything.
        seconds: Seconds between two lines where there is no terminal.
    """

    def __init__(self, steps: int, *, shown: bool, seconds: float = 30.0) -> None:
        self.steps, self.shown, self.seconds = steps, shown, seconds
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=50)  # seconds, clips, of these seconds waiting
        self._last = 0.0
        self._bar: Any = None
        self._task: Any = None
        if shown and sys.stderr.isatty():
            self._bar = _bar()
            if self._bar is not None:
                self._task = self._bar.add_task("training", total=steps, facts="")
                self._bar.start()

    def say(self, text: str) -> None:
        """Write a line to standard error.

        Args:
            text: The line.
        """
        if not self.shown:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def advance(self, step: int, *, loss: float, rate: float, clips: int, seconds: float, waited: float) -> None:
        """Show a finished step.

        Args:
            step: Steps finished.
            loss: Its loss.
            rate: Learning rate.
            clips: Clips of all processes.
            seconds: How long it took.
            waited: How much of that the step waited for data.
        """
        self._recent.append((seconds, clips, waited))
        if not self.shown:
            return
        facts = f"loss {loss:.3f}  {self.clips_per_second:,.1f} clips/s  {self.waiting:.0%} waiting for data"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, facts=facts)
        elif time.monotonic() - self._last >= self.seconds or step == self.steps:
            self._last = time.monotonic()
            left = _duration((self.steps - step) * sum(s for s, _, _ in self._recent) / len(self._recent))
            self.say(f"step {step}/{self.steps}  {facts}  lr {rate:.2e}  {left} left")

    @property
    def clips_per_second(self) -> float:
        """Clips of all processes in a second, over the last steps."""
        seconds = sum(s for s, _, _ in self._recent)
        return sum(clips for _, clips, _ in self._recent) / seconds if seconds else 0.0

    @property
    def waiting(self) -> float:
        """Share of the time that the last steps waited for data."""
        seconds = sum(s for s, _, _ in self._recent)
        return sum(waited for _, _, waited in self._recent) / seconds if seconds else 0.0

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar() -> Any:
    """Return rich's bar, or None without rich."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column
    except ImportError:
        return None
    console = Console(stderr=True)
    # On a narrow terminal the facts go over two lines. Steps and the time that is left are never cut.
    columns: list[Any] = [
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[facts]}", table_column=Column()),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
    ]
    if (room := console.width - _FACTS) >= 8:
        columns.insert(0, BarColumn(bar_width=min(40, room)))
    return Progress(*columns, console=console)


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds) // 60, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {round(seconds) % 60:02} s"
