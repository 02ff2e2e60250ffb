"""Leases: while one is held, no process can write into a file, and what was checked is what is read again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO


@contextmanager
def held_still(file: BinaryIO) -> Iterator[bool]:
    """Hold back all who want to write into an open file, where the system can.

    Linux grants a lease on a file of one's own on a local disk that nobody has open for writing. Who opens it for
    writing then waits, at most for the 45 seconds of ``/proc/sys/fs/lease-break-time``, so hold it briefly.

    Args:
        file: The file, open for reading.

    Yields:
        Whether the file is held.
    """
    held = _lease(file.fileno())
    try:
        yield held
    finally:
        if held:
            import fcntl

            fcntl.fcntl(file.fileno(), fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _lease(descriptor: int) -> bool:
    try:
        import fcntl

        # What has no disk of its own, such as a file system over the network, may be written from elsewhere.
        if os.major(os.fstat(descriptor).st_dev) == 0:
            return False
        # Whoever waits makes the system send a signal; by default one that ends this process, so one that is ignored.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except (ImportError, AttributeError, OSError):  # not Linux, or not granted
        return False
    return True
