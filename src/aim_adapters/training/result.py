"""What came out of a run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from aim_adapters.video import Evaluation


@dataclass(frozen=True)
class FitResult:
    """What came out of a run; it prints as a summary.

    Args:
        out: Folder of the run: the adapters, ``best/``, ``checkpoints/``.
        steps: Steps that the run has taken in all.
        history: A record for each step (``step``, ``epoch``, ``loss``, ``lr``) and each evaluation (``top1``).
        evaluation: The evaluation at the end, or None if there is no test set.
        best: Best accuracy of the evaluations after epochs, in [0, 1], or None.
        seconds: How long this call trained.
        clips_per_second: Clips of all processes in a second, over the last steps.
        waiting: Share of that time which waited for data.
        gradient_bytes: Bytes of gradients that each process sends for a step; 0 for one process.
        execution: How steps ran, and why.
    """

    out: Path
    steps: int
    history: list[dict[str, Any]]
    evaluation: Evaluation | None
    best: float | None
    seconds: float
    clips_per_second: float
    waiting: float
    gradient_bytes: int
    execution: str

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        return [record["loss"] for record in self.history if "loss" in record]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values, without the history."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {"out": str(self.out), "last_loss": self.losses[-1] if self.losses else None}
        fields["evaluation"] = None if self.evaluation is None else self.evaluation.to_dict()
        del fields["history"]
        return fields

    def __str__(self) -> str:
        """Return a summary."""
        lines = [f"{self.steps} steps; adapters in {self.out}"]
        if self.seconds:
            waiting = f"{self.waiting:.0%} of the time waiting for data"
            lines.append(f"{self.clips_per_second:,.1f} clips/s, {waiting}; ran {self.execution}")
        if self.best is not None:
            lines.append(f"best top-1 after an epoch: {self.best:.1%}, adapters in {self.out / 'best'}")
        if self.evaluation is not None:
            lines.append(str(self.evaluation))
        return "\n".join(lines)


def gradient_bytes(model: nn.Module) -> int:
    """Return the bytes of gradients that a process sends for each step: those of what trains, and nothing else.

    Args:
        model: A wrapped model, or a baseline.
    """
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
