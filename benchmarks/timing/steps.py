"""Time the peers of a size in turn: what benchmarks of training steps and of inference share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Machine, Step, Timing, breakdown, reason, record
from benchmarks.timing.goals import Goal
from benchmarks.timing.peers import MODELS, Size, arithmetic, family
from benchmarks.timing.step_results import Table, merge
from benchmarks.timing.tasks import Task, agree, agreement, make_step

PROFILED = ("aim/eager", "plain/blocks")


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
class StepEffort:
    """How many steps are timed, and in how many rounds: as many as fill some seconds, within bounds."""

    warmup: int = 3
    rounds: int = 4
    seconds: float = 0.3
    bounds: tuple[int, int] = (4, 40)
    energy_seconds: float = 2.0  # the counter is read anew every tenth
    arithmetic: bool = True

    def steps(self, step_seconds: float) -> int:
        """Return how many steps are timed together."""
        least, most = self.bounds
        return min(most, max(least, round(self.seconds / step_seconds)))


@dataclass
class Run:
    """One run of a benchmark: where its results go, and when it begins no further peer."""

    task: Task
    machine: Machine
    effort: StepEffort = field(default_factory=StepEffort)
    folder: Path | None = None
    seconds: float = float("inf")
    profile: bool = False
    command: str = ""
    ceiling: float | None = None
    ran_on: dict[str, Any] = field(default_factory=record)
    started: float = field(default_factory=time.perf_counter)
    agreed: dict[Size, dict[str, Any]] = field(default_factory=dict)

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
        merge(self.task.name, self.task.question, {kind: {key: table}}, self.folder)
        print(f"[{time.perf_counter() - self.started:5.0f} s] {note}", flush=True)


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
        if not peer.endswith(("/graph", "/recorded")):  # which allocate while they warm up, and never again
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
    table["agreement"] = agreements(run, [size for _, size in job.runs.values()])
    run.save("tables", job.key, table, f"{job.key}: errors {table['agreement']}")
    flops = table["flops_per_clip"] = {}
    steps: dict[str, Step] = {}
    for label, (peer, size) in job.runs.items():
        if run.over:
            table["left_out"].append(label)
            continue
        entry, step = first_look(run, peer, size, count(run, peer, size, flops))
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
        rates(table["peers"][label], seconds, size, count(run, peer, size, flops), run.ceiling)
    held = [target for goal in job.goals for target in goal(job.key, table["peers"])]
    agreed = agree(table["agreement"])
    table["targets"] = [target.entry() for target in held]
    table["complete"] = not table["left_out"]
    lines = [f"in turn: {describe(label, table['peers'][label])}" for label in turns] + [*map(str, held)]
    run.save("tables", job.key, table, "\n".join(lines + ([] if agreed else ["PATHS DISAGREE"])))
    return agreed and all(target.met for target in held)


def agreements(run: Run, sizes: Sequence[Size]) -> dict[str, Any]:
    """Return the errors of our ways for each model among some sizes; its name stands before them if there are several.

    They do not depend on the number of clips, so a run finds them once.
    """
    models = {(size.name, size.input_adapter): replace(size, clips=1) for size in reversed(sizes)}
    found: dict[str, Any] = {}
    for (name, adapter), size in models.items():
        if size not in run.agreed:
            try:
                run.agreed[size] = agreement(run.task, size, run.machine.device)
            except Exception as error:  # the peers' times do not depend on it
                run.agreed[size] = {"error": reason(error)}
            run.machine.forget()
        if "error" in run.agreed[size]:
            return run.agreed[size]
        before = f"{name}{' with input adapter' * adapter}: " if len(models) > 1 else ""
        for way, errors in run.agreed[size].items():
            found.setdefault(way, {}).update({before + part: error for part, error in errors.items()})
    return found


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
            rows.append(first_look(run, peer, each, count(run, peer, each, flops))[0])
            run.machine.forget()
            run.save("sweeps", key, table, f"{clips:>6} clips {describe(peer, rows[-1])}")
            clips *= 2
    table["complete"] = not table["left_out"]
    run.save("sweeps", key, table, f"sweep of {key} {'done' if table['complete'] else 'cut short'}")


def count(run: Run, peer: str, size: Size, found: dict[str, Any]) -> int | None:
    """Return the arithmetic of a clip, from what was found before if it can be; None where it is not asked for."""
    if not run.effort.arithmetic:
        return None
    name = family(peer.split("/")[0])
    key = f"{name}, {size.frames} frames"
    if key not in found:
        try:
            found[key] = arithmetic(MODELS[name](size), size, train=run.task.train)
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
