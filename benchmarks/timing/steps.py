"""Time the peers of a size in turn: what benchmarks of training steps and of inference share.

Both write one file, which holds the results of several runs: a run adds its tables and replaces those of the same name,
and each table says where it ran. ``python -m benchmarks.timing.steps FILE ...`` adds the tables of files that lie
elsewhere.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import results
from benchmarks.harness.breakdown import breakdown
from benchmarks.harness.machines import Cpu, Gpu, Machine
from benchmarks.harness.results import Timing, reason, record, write
from benchmarks.timing.goals import Goal
from benchmarks.timing.peers import MODELS, MODES, Size, arithmetic, family
from benchmarks.timing.tasks import Step, Task, agree, agreement, make_step

KINDS = ("tables", "sweeps")
SMALL = "small-8"  # the size that a CPU can do
PROFILED = ("aim/eager", "plain/blocks")
Table = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A table: its peers by name, each with its size, and what it is held against."""

    key: str
    runs: dict[str, tuple[str, Size]]
    goals: tuple[Goal, ...] = ()

    @property
    def size(self) -> Size:
        """The first peer's."""
        return next(iter(self.runs.values()))[1]


@dataclass(frozen=True)
class Effort:
    """How many steps are timed, and in how many rounds: as many as fill some seconds, within bounds."""

    warmup: int = 3
    rounds: int = 4
    seconds: float = 0.3
    bounds: tuple[int, int] = (4, 40)
    energy_seconds: float = 2.0  # the counter is read anew every tenth

    def steps(self, step_seconds: float) -> int:
        """Return how many steps are timed together."""
        least, most = self.bounds
        return min(most, max(least, round(self.seconds / step_seconds)))


@dataclass
class Run:
    """One run of a benchmark: where its results go, and when it begins no further peer."""

    task: Task
    machine: Machine
    effort: Effort = field(default_factory=Effort)
    folder: Path | None = None
    seconds: float = float("inf")
    profile: bool = False
    command: str = ""
    ceiling: float | None = None
    ran_on: dict[str, Any] = field(default_factory=record)
    started: float = field(default_factory=time.perf_counter)

    @property
    def over(self) -> bool:
        """Whether the time is used up."""
        return time.perf_counter() - self.started > self.seconds

    def table(self, size: Size) -> Table:
        """Return an empty table."""
        return {
            "size": asdict(size),
            "device": self.machine.device,
            "command": self.command,
            "ran_on": self.ran_on,
            "threads": torch.get_num_threads(),
            "bf16_flop_per_second": self.ceiling,
            "complete": False,
            "left_out": [],
            "peers": {},
        }

    def save(self, kind: str, key: str, table: Table, note: str) -> None:
        """Write the results that there are, and say something."""
        merge(self.task, {kind: {key: table}}, self.folder)
        print(f"[{time.perf_counter() - self.started:5.0f} s] {note}", flush=True)


def merge(task: Task, parts: dict[str, dict[str, Table]], folder: Path | None) -> None:
    """Add tables to those that the file of a benchmark holds, in the place of older ones."""
    path = (results.RESULTS if folder is None else folder) / f"{task.name}.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    tables = {kind: {**held.get(kind, {}), **parts.get(kind, {})} for kind in KINDS}
    write(task.name, {"benchmark": task.name, "question": task.question, **tables}, folder)


# What is measured


def rates(
    entry: dict[str, Any], seconds: Sequence[float], size: Size, flops: int | None, ceiling: float | None
) -> None:
    """Write into an entry the times of steps, and what they make of clips and arithmetic."""
    timing = Timing.of(seconds)
    entry |= {**asdict(timing), "clips_per_second": size.clips / timing.median}
    if flops is not None:
        entry["flop_per_second"] = flops * size.clips / timing.median
        entry["share_of_ceiling"] = None if ceiling is None else entry["flop_per_second"] / ceiling


def first_look(run: Run, peer: str, size: Size, flops: int | None) -> tuple[dict[str, Any], Step | None]:
    """Build a peer, warm it up and measure it alone; whatever it throws is its result."""
    machine, effort = run.machine, run.effort
    place = {"clips": size.clips, "frames": size.frames}
    before, begun = machine.held(), time.perf_counter()
    try:
        step = make_step(run.task, peer, size, machine.device)
        outputs = [float(step().float().mean()) for _ in range(effort.warmup)]
        entry: dict[str, Any] = {**place, "seconds_until_ready": time.perf_counter() - begun, "outputs": outputs}
        if not peer.endswith("/graph"):  # which allocates while it warms up, and never again
            machine.held()  # a compiler's trials do not count
        seconds = machine.times(step, 2)
        seconds = machine.times(step, effort.steps(min(seconds)))
        rates(entry, seconds, size, flops, run.ceiling)
        peak = machine.peak()
        entry["peak_bytes"] = None if peak is None else peak - before
        entry |= machine.alone(step)
        if effort.energy_seconds:
            joules = machine.joules(step, max(2, round(effort.energy_seconds / entry["median"])))
            entry["joules_per_clip"] = None if joules is None else joules / size.clips
    except Exception as error:  # out of memory, or no compiler
        return {**place, "error": reason(error)}, None
    return entry, step


def measure(run: Run, job: Job) -> bool:
    """Time the peers of a table, first each alone and then in turn, so that drift of the clocks meets all alike.

    Returns:
        Whether paths agree and targets are met.
    """
    torch.compiler.reset()
    machine, table = run.machine, run.table(job.size)
    try:
        table["agreement"] = agreement(run.task, job.size, machine.device)
    except Exception as error:  # the peers' times do not depend on it
        table["agreement"] = {"error": reason(error)}
    machine.forget()
    run.save("tables", job.key, table, f"{job.key}: errors {table['agreement']}")
    flops = table["flops_per_clip"] = {}
    steps: dict[str, Step] = {}
    for label, (peer, size) in job.runs.items():
        if run.over:
            table["left_out"].append(label)
            continue
        entry, step = first_look(run, peer, size, count(run.task, peer, size, flops))
        table["peers"][label] = entry
        if step is not None:
            steps[label] = step
            if run.profile and peer in PROFILED:
                entry["profile"] = profile(machine, step, size)
        machine.forget()
        run.save("tables", job.key, table, describe(label, entry))
    turns: dict[str, list[float]] = {label: [] for label in steps}
    for _ in range(run.effort.rounds):
        for label, step in steps.items():
            machine.times(step, 1)
            turns[label] += machine.times(step, run.effort.steps(table["peers"][label]["median"]))
    for label, seconds in turns.items():
        peer, size = job.runs[label]
        rates(table["peers"][label], seconds, size, count(run.task, peer, size, flops), run.ceiling)
    held = [target for goal in job.goals for target in goal(job.key, table["peers"])]
    agreed = agree(table["agreement"])
    table["targets"] = [target.entry() for target in held]
    table["complete"] = not table["left_out"]
    lines = [f"in turn: {describe(label, table['peers'][label])}" for label in turns] + [*map(str, held)]
    run.save("tables", job.key, table, "\n".join(lines + ([] if agreed else ["PATHS DISAGREE"])))
    return agreed and all(target.met for target in held)


def sweep(run: Run, key: str, size: Size, peers: Sequence[str], *, most: int = 2**14) -> None:
    """Time peers alone, at 1, 2, 4 ... clips, until one does not fit."""
    table = run.table(size)
    flops: dict[str, Any] = {}
    for peer in peers:
        rows = table["peers"][peer] = []
        clips = 1
        while clips <= most and not (rows and "error" in rows[-1]):
            if run.over:
                table["left_out"].append(f"{peer}, {clips} clips")
                break
            each = replace(size, clips=clips)
            rows.append(first_look(run, peer, each, count(run.task, peer, each, flops))[0])
            run.machine.forget()
            run.save("sweeps", key, table, f"{clips:>6} clips {describe(peer, rows[-1])}")
            clips *= 2
    table["complete"] = not table["left_out"]
    run.save("sweeps", key, table, f"sweep of {key} {'done' if table['complete'] else 'cut short'}")


def count(task: Task, peer: str, size: Size, found: dict[str, Any]) -> int | None:
    """Return the arithmetic of a clip, from what was found before if it can be."""
    name = family(peer.split("/")[0])
    key = f"{name}, {size.frames} frames"
    if key not in found:
        try:
            found[key] = arithmetic(MODELS[name](size), size, train=task.train)
        except Exception as error:  # the peers' times do not depend on it
            found[key] = {"error": reason(error)}
    return found[key] if isinstance(found[key], int) else None


def profile(machine: Machine, step: Step, size: Size, steps: int = 3) -> dict[str, Any]:
    """Return the parts of a step."""
    with torch.device("meta"):
        vit = size.build()
    tokens = vit.patch_embed.num_patches + getattr(vit, "num_prefix_tokens", 0)
    heads = next(module.num_heads for module in vit.modules() if hasattr(module, "num_heads"))
    try:
        kernels = machine.kernels(step, steps)
    except Exception as error:  # a profiler that is not there
        return {"error": reason(error)}
    return breakdown(kernels, steps=steps, sequences=size.clips * tokens, heads=heads)


# What is made of it


def describe(label: str, entry: dict[str, Any]) -> str:
    """Return a line about a peer."""
    if "error" in entry:
        return f"  {label:<22} {entry['error'][:160]}"
    words = [f"  {label:<22} {1e3 * entry['median']:8.2f} ms  {entry['clips_per_second']:7.1f} clips/s"]
    if entry["peak_bytes"] is not None:
        words.append(f"{entry['peak_bytes'] / 2**30:6.2f} GiB")
    if entry.get("share_of_ceiling") is not None:
        words.append(f"{100 * entry['share_of_ceiling']:3.0f} % of products")
    if entry.get("joules_per_clip") is not None:
        words.append(f"{entry['joules_per_clip']:.2f} J/clip")
    if "host_seconds" in entry:
        words.append(f"host {1e3 * entry['host_seconds']:.1f} ms")
    return "  ".join((*words, f"ready after {entry['seconds_until_ready']:.0f} s"))


# The command


def command(task: Task, argv: Sequence[str]) -> str:
    """Return what anyone can run; where the result went was the caller's own affair."""
    words = list(argv)
    if "--out" in words:
        at = words.index("--out")
        del words[at : at + 2]
    return shlex.join(["python", "-m", f"benchmarks.timing.{task.name}", *words])


def key_of(size: Size, device: str) -> str:
    """Return the name of a table."""
    words = f"{size.name}, {size.frames} frames, {size.clips} clip{'s' * (size.clips != 1)}"
    return words if device == "cuda" else f"{words}, {device}"


def parser(description: str, sizes: Iterable[str]) -> argparse.ArgumentParser:
    """Return the options that both benchmarks know."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--out", type=Path, help="folder of the result")
    made.add_argument("--quick", action="store_true", help="the first two peers of the first size, few steps")
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


def begin(task: Task, made: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[Run, argparse.Namespace]:
    """Check what is asked for, and begin."""
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
        effort=Effort(rounds=2, energy_seconds=0) if arguments.quick else Effort(),
        folder=arguments.out,
        seconds=arguments.seconds,
        profile=getattr(arguments, "profile", False),
        command=command(task, sys.argv[1:] if argv is None else argv),
        ceiling=machine.ceiling(),
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


def main(argv: Sequence[str] | None = None) -> int:
    """Add the tables of files that lie elsewhere to the results."""
    from benchmarks.timing import inference, train_step

    made = argparse.ArgumentParser(description=main.__doc__)
    made.add_argument("files", nargs="+", type=Path)
    made.add_argument("--out", type=Path, help="folder of the result")
    arguments = made.parse_args(argv)
    tasks = {task.name: task for task in (train_step.TASK, inference.TASK)}
    for path in arguments.files:
        result = json.loads(path.read_text(encoding="utf-8"))
        merge(tasks[result["benchmark"]], {kind: result[kind] for kind in KINDS}, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
