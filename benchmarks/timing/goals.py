"""What our way to run a model has to reach against a peer's, in the same table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Target
from benchmarks.timing.peers import COMPILED, MODES

Goal = Callable[[str, dict[str, Any]], list[Target]]


def fastest(
    peers: dict[str, Any], names: Iterable[str], modes: Sequence[str] = MODES, by: str = "median"
) -> tuple[str, dict[str, Any]] | None:
    """Return the fastest of some models in some modes, with its name, or None."""
    names = tuple(names)
    found = [
        (label, entry)
        for label, entry in peers.items()
        if entry.get(by) is not None and label.split("/")[0] in names and label.split("/")[1] in modes
    ]
    return min(found, key=lambda each: each[1][by], default=None)


@dataclass(frozen=True)
class Against:
    """Hold the fastest way to run ours against the fastest of some ways to run a peer, and the memory of the same two.

    Attributes:
        ours: Our model.
        peer: The other.
        speed: How many times as fast ours has to be.
        time: What share of the other's time it may take.
        memory: What share of the other's memory.
        modes: Ways to run the other.
        our_modes: Ways to run ours.
        by: The time that is meant.
    """

    ours: str
    peer: str
    speed: float | None = None
    time: float | None = None
    memory: float | None = None
    modes: tuple[str, ...] = COMPILED
    our_modes: tuple[str, ...] = MODES
    by: str = "median"

    def __call__(self, key: str, peers: dict[str, Any]) -> list[Target]:
        """Return the targets, none where one of the two was not measured."""
        ours = fastest(peers, (self.ours,), self.our_modes, by=self.by)
        other = fastest(peers, (self.peer,), self.modes, by=self.by)
        if ours is None or other is None:
            return []
        where = f"{key}: {ours[0]} against {other[0]}"
        times = ours[1][self.by], other[1][self.by]
        found = []
        if self.speed is not None:
            found.append(Target(f"{where}, times as fast", times[1] / times[0], at_least=self.speed))
        if self.time is not None:
            found.append(Target(f"{where}, share of its time", times[0] / times[1], at_most=self.time))
        if self.memory is not None:
            share = ours[1]["peak_bytes"] / other[1]["peak_bytes"]
            found.append(Target(f"{where}, share of its memory", share, at_most=self.memory))
        return found
