"""Numbers that a benchmark has to reach."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """A number that a benchmark has to reach, or must not pass."""

    what: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool:
        """Whether it is between its limits."""
        low = -math.inf if self.at_least is None else self.at_least
        return low <= self.value <= (math.inf if self.at_most is None else self.at_most)

    def entry(self) -> dict[str, Any]:
        """Return what stands of it in a result."""
        return {**asdict(self), "met": self.met}

    def __str__(self) -> str:
        limits = {"at least": self.at_least, "at most": self.at_most}
        words = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)
        return f"{self.what}: {self.value:.2f}, target {words}: {'met' if self.met else 'MISSED'}"
