"""A record of the videos that a dataset leaves out, and a limit to their number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aim_adapters.arguments import require_number
from aim_adapters.errors import VideoError, warn
from aim_adapters.video.datasets.samples import SkippedVideo

# Broken videos that are warned about one by one.
_MOST_WARNINGS = 10


class NotesSkipped:
    """What a dataset has that lists the videos that it leaves out.

    Copies of a dataset share the list.
    """

    skipped: list[SkippedVideo]

    def _start_list(self, what: str, skipped: Sequence[SkippedVideo], readable: int | None) -> None:
        """Begin the list.

        Args:
            what: Name of the dataset, for messages.
            skipped: What is known to be left out before any video is read.
            readable: Number of the other videos, or None if it is not known.
        """
        self.skipped = [*skipped]
        self._what, self._found = what, len(self.skipped)
        self._known = {record.name for record in self.skipped}
        self._count = None if readable is None else readable + sum(record.counts for record in self.skipped)

    def note_skipped(self, records: Iterable[SkippedVideo], *, max_skipped: float | None = None) -> None:
        """List videos that could not be read, also those that worker processes have met, and warn about each once.

        Args:
            records: The videos.
            max_skipped: Share of all videos that may be missing or broken; None: all.

        Raises:
            ConfigError: ``max_skipped`` is no number >= 0.
            VideoError: More are.
        """
        for record in records:
            if record.name not in self._known:
                self._known.add(record.name)
                self.skipped.append(record)
                met = len(self.skipped) - self._found
                if met <= _MOST_WARNINGS:
                    others = "; of others there is no warning, .skipped lists them" if met == _MOST_WARNINGS else ""
                    warn(f"{record.name}: {record.reason}; it is left out{others}")
        if max_skipped is None or self._count is None:
            return
        counted = [record for record in self.skipped if record.counts]
        if len(counted) > require_number("max_skipped", max_skipped, low=0.0) * self._count:
            some = "; ".join(f"{record.name}: {record.reason}" for record in counted[:5])
            raise VideoError(
                f"{self._what}: {len(counted)} of {self._count} videos are missing or cannot be read, more than "
                f"max_skipped={max_skipped} allows: {some}{'; …' * (len(counted) > 5)}. `aim-adapters check` finds "
                "all of them; repair or remove them, or raise max_skipped"
            )
