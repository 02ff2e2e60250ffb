"""How many clips a second does inference do, and how long does one call take, beside those of the peers?

``python -m benchmarks.timing.inference`` on a GPU; without one, a small model on the processor. A step is a forward
pass in ``torch.inference_mode`` and bf16 autocast (on a CPU in float32). Peers, modes and turns are those of
``benchmarks.timing.train_step``. With few clips the time that counts is that of a call that finds an idle GPU, until
its end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.harness import Step
from benchmarks.timing.goals import Against, Goal
from benchmarks.timing.peers import Batch, Size
from benchmarks.timing.step_command import SMALL, begin, jobs, key_of, measure_all, parser
from benchmarks.timing.steps import sweep
from benchmarks.timing.tasks import Task
from benchmarks.timing.train_step import FEW, GOALS, PEERS, SIZES, eager_goals

MANY = (
    "aim/graph", "plain/blocks", "aim/eager", "aim/blocks", "plain/whole", "reference/eager", "plain/eager",
    "aim/whole", "aim-fp32/eager",
)  # fmt: skip
SWEPT = ("aim/eager", "plain/eager")


def peers_of(name: str, size: Size) -> Sequence[str]:
    """Return the peers of a size."""
    if name == SMALL:
        return PEERS[SMALL]
    return FEW if size.clips <= 8 else MANY


def goals_of(name: str, size: Size) -> tuple[Goal, ...]:
    """Return what is asked of a size."""
    if name == SMALL:
        return GOALS[SMALL]
    if name != "base-8":
        return ()
    if size.clips <= 8:
        fastest = Against("aim", "reference", speed=3.0, modes=("eager",), by="latency_seconds")
        return (fastest, *eager_goals(size, 0.7))
    return (Against("aim", "plain", speed=1.6),)


@torch.inference_mode()
def logits_of(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Tensor:
    """Return the logits ``[B, K]``, in autocast to a dtype if that is not float32."""
    with torch.autocast(batch[0].device.type, dtype, enabled=dtype != torch.float32):
        return model(batch[0])


def prepare(model: nn.Module, batch: Batch, size: Size) -> Step:
    """Return what classifies the clips."""
    return lambda: logits_of(model, batch, size.low)


def observe(model: nn.Module, batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the logits."""
    return {"logits": logits_of(model, batch, dtype).float()}


TASK = Task("inference", "time and peak memory of inference", train=False, prepare=prepare, observe=observe)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the result, and return the exit status."""
    run, arguments = begin(TASK, parser(__doc__.splitlines()[0], SIZES), argv)
    if arguments.sweep:
        for name in arguments.sizes or ["base-8"]:
            sweep(run, key_of(SIZES[name], arguments.device), SIZES[name], arguments.peers or SWEPT)
        return 0
    return measure_all(run, jobs(arguments, SIZES, peers_of, goals_of))


if __name__ == "__main__":
    sys.exit(main())
