"""Measure the memory that a block of code takes at its peak."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def at_most(mebibytes: float) -> Iterator[None]:
    """Check that the memory of this process grows by no more inside the block, where Linux says how far it did."""
    try:
        RESET.write_text("5", encoding="ascii")  # forgets the peak so far
    except OSError:
        yield
        return
    before = _peak()
    yield
    grown = _peak() - before
    assert grown < mebibytes, f"{grown:.0f} MiB"


def _peak() -> float:
    found = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) / 1024
