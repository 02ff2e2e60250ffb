"""Several processes that measure together."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from benchmarks.harness import Machine, reason

Result = TypeVar("Result")


class PeerError(RuntimeError):
    """Tells every process that a peer failed on one of them."""


class Team:
    """All processes, seen from one of them; they speak over the host, which leaves the GPUs at rest."""

    def __init__(self, rank: int, machine: Machine, group: dist.ProcessGroup | None = None) -> None:
        self.rank, self.machine, self.group = rank, machine, group

    def tell(self, value: Any) -> list[Any]:
        """Return what every process tells here, once all have come."""
        found: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(found, value, group=self.group)
        return found

    def act(self, what: Callable[[], Result]) -> Result:
        """Do something on every process.

        Raises:
            PeerError: On all of them, when it failed on any.
        """
        error = None
        try:
            found = what()
        except Exception as caught:  # out of memory, or no compiler
            error = reason(caught)
            print(f"process {self.rank}: {error}", file=sys.stderr, flush=True)  # the others may not come
        for rank, each in enumerate(self.tell(error)):
            if each is not None:
                raise PeerError(f"process {rank}: {each}")
        return found
