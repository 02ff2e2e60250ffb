"""The command line of training steps and of inference: what is asked for becomes tables to measure."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.harness import Cpu, Gpu, command
from benchmarks.timing.goals import Goal
from benchmarks.timing.peers import MODELS, MODES, Size
from benchmarks.timing.steps import Job, Run, StepEffort, measure
from benchmarks.timing.tasks import Task

SMALL = "small-8"  # the size that a CPU can do


def key_of(size: Size, device: str) -> str:
    """Return the name of a table."""
    words = f"{size.name}, {size.frames} frames, {size.clips} clip{'s' * (size.clips != 1)}"
    return words if device == "cuda" else f"{words}, {device}"


def parser(description: str, sizes: Iterable[str]) -> argparse.ArgumentParser:
    """Return the options that both benchmarks know."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--out", type=Path, help="folder of the result")
    made.add_argument("--quick", action="store_true", help="the first two peers of the first size, few steps")
    made.add_argument("--brief", action="store_true", help="fewer steps, without energy and arithmetic")
    made.add_argument("--sizes", nargs="+", choices=tuple(sizes), help="by default all that the device has")
    made.add_argument("--peers", nargs="+", metavar="MODEL/MODE", help="only these, of every size")
    made.add_argument("--clips", nargs="+", type=int, help="numbers of clips, instead of each size's own")
    made.add_argument("--seconds", type=float, default=float("inf"), help="begin no peer after them")
    made.add_argument("--sweep", action="store_true", help="1, 2, 4 ... clips until the memory is full, instead")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    return made


def check_peers(made: argparse.ArgumentParser, peers: Iterable[str]) -> None:
    """Refuse peers that there are not."""
    for peer in peers:
        name, _, mode = peer.partition("/")
        if name not in MODELS or mode not in MODES:
            made.error(f"a peer is one of {', '.join(MODELS)} and /{', /'.join(MODES)}, got {peer!r}")


def effort_of(arguments: argparse.Namespace) -> StepEffort:
    """Return how many steps are timed."""
    if arguments.brief:
        return StepEffort(rounds=3, seconds=0.2, energy_seconds=0, arithmetic=False)
    return StepEffort(rounds=2, energy_seconds=0) if arguments.quick else StepEffort()


def begin(
    task: Task, made: argparse.ArgumentParser, argv: Sequence[str] | None, *, name: str | None = None
) -> tuple[Run, argparse.Namespace]:
    """Check what is asked for, and begin; ``name`` is that of the command, by default the task's."""
    arguments = made.parse_args(argv)
    check_peers(made, arguments.peers or ())
    if arguments.device == "cuda" and not torch.cuda.is_available():
        made.error("there is no GPU; --device cpu times a small model on the processor")
    # Blocks share their code; each peer's and each mode's is one more version of it.
    torch._dynamo.config.recompile_limit = 256
    machine = Gpu() if arguments.device == "cuda" else Cpu()
    run = Run(
        task,
        machine,
        effort=effort_of(arguments),
        folder=arguments.out,
        seconds=arguments.seconds,
        profile=getattr(arguments, "profile", False),
        command=command(name or task.name, sys.argv[1:] if argv is None else argv),
        ceiling=None if arguments.brief else machine.ceiling(),
    )
    return run, arguments


def jobs(
    arguments: argparse.Namespace,
    sizes: dict[str, Size],
    peers: Callable[[str, Size], Sequence[str]],
    goals: Callable[[str, Size], tuple[Goal, ...]],
) -> list[Job]:
    """Return a table for every size and number of clips that is asked for; those of a CPU are in float32."""
    found = []
    for name in arguments.sizes or [name for name in sizes if (name == SMALL) == (arguments.device == "cpu")]:
        for clips in arguments.clips or [sizes[name].clips]:
            size = replace(sizes[name], clips=clips)
            chosen = arguments.peers or peers(name, size)
            runs = {peer: (peer, size) for peer in (chosen[:2] if arguments.quick else chosen)}
            meant = (name == SMALL) == (arguments.device == "cpu")  # on the other device the ratios are others
            found.append(Job(key_of(size, arguments.device), runs, goals(name, size) if meant else ()))
    return found[:1] if arguments.quick else found


def measure_all(run: Run, tables: Sequence[Job]) -> int:
    """Measure every table, and return the exit status."""
    good = True
    for job in tables:
        good &= measure(run, job)
        run.machine.forget()
    return 0 if good else 1
