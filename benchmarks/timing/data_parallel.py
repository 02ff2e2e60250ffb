"""How near to linear does training scale over GPUs?

``python -m benchmarks.timing.data_parallel`` on a machine with at least two; ``--device cpu`` tries it out with two
processes and a small model. There is one process a GPU, under DistributedDataParallel, and each trains as many clips as
one alone would (weak scaling): the share of linear is the step of the first GPU alone, without DistributedDataParallel,
over that of all together. They take turns with all GPUs at once but each for itself, which shows what is lost to the
machine and not to the gradients' way. Of the processes the slowest counts. Peers and steps are those of
``benchmarks.timing.train_step``.

Of a step that is replayed from CUDA graphs all gradients come at its end, so they go in one bucket; with ``+flat``
behind its name a peer sends them in one message without DistributedDataParallel. With ``+fsdp2`` each process holds a
part of every block, under FSDP2. ``--large`` holds that against DistributedDataParallel, with ViT-L/14 and frozen
weights in float32.

A peer that fails while it is built and warmed up is a result. If it leaves the others waiting for it in the middle of a
step, the run ends with an error after `LIMIT`; what was measured before stands in the file.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.harness import Cpu, Gpu, Step, Target, Timing, command, path_of, record, write
from benchmarks.timing import train_step
from benchmarks.timing.peers import Size
from benchmarks.timing.replicas import FLAT, SHARDED, compare, hold, nbytes
from benchmarks.timing.step_command import SMALL, check_peers
from benchmarks.timing.steps import StepEffort
from benchmarks.timing.tasks import make_model, make_step, step_of
from benchmarks.timing.team import PeerError, Team

TASK = replace(train_step.TASK, name="data_parallel", question="training steps on several GPUs, as a share of linear")
PEERS = {
    "cuda": ("aim/graph", "aim/graph" + FLAT, "timesformer/blocks", "aim/blocks"),
    "cpu": ("aim/eager", "aim/eager" + FLAT),
}
SIZES = {"cuda": train_step.BASE, "cpu": train_step.SIZES[SMALL]}
LARGE = ("aim/eager", "aim-fp32/eager", "aim-fp32/eager" + SHARDED)
EFFORT = StepEffort(rounds=8)
LINEAR = 0.95
LIMIT = timedelta(seconds=180)  # a compiler's time on an empty cache, several times over


@dataclass(frozen=True)
class Plan:
    """What every process is told."""

    processes: int
    peers: tuple[str, ...]
    size: Size
    device: str
    effort: StepEffort
    folder: Path | None
    head: dict[str, Any]
    name: str = TASK.name


# One peer


def warm(step: Step, repeats: int) -> Step:
    """Take the first steps, and return what does one.

    Raises:
        ArithmeticError: A loss is not finite.
    """
    losses = [float(step()) for _ in range(repeats)]
    if not all(map(math.isfinite, losses)):
        raise ArithmeticError(f"the loss is not finite: {losses}")
    return step


def slowest(ranks: Sequence[Sequence[float]]) -> Sequence[float]:
    """Return the seconds of the process that took longest in all."""
    return max(ranks, key=sum)


def compared(
    alone: Sequence[float], apart: Sequence[float], together: Sequence[float], *, processes: int, clips: int
) -> dict[str, Any]:
    """Return the times of a process alone, of all for themselves and of all together, and what they come to."""
    one, all_ = Timing.of(alone), Timing.of(together)
    return {
        "processes": processes,
        "clips": clips,
        "alone": asdict(one),
        "apart": asdict(Timing.of(apart)),
        "together": asdict(all_),
        "efficiency": one.median / all_.median,
        "clips_per_second": processes * clips / all_.median,
    }


def take_turns(
    team: Team, alone: Step, together: Step, *, effort: StepEffort, count: int
) -> tuple[list[float], list[float], list[float]]:
    """Time the first process while the others wait, all each for itself, and all together; so on for several rounds."""
    times = team.machine.times
    single: list[float] = []
    apart: list[float] = []
    joint: list[float] = []
    for _ in range(effort.rounds):
        if not team.rank:
            times(alone, effort.warmup)
        single += team.tell([] if team.rank else times(alone, count))[0]
        for step, found in ((alone, apart), (together, joint)):
            times(step, effort.warmup)  # who waited has lower clocks
            team.tell(None)
            found += slowest(team.tell(times(step, count)))
    return single, apart, joint


def time_peer(team: Team, label: str, size: Size, effort: StepEffort) -> dict[str, Any]:
    """Build a peer alone and as one of all, see that all train the same, and time both.

    Raises:
        PeerError: A process could not, on all processes.
    """
    machine, rank = team.machine, team.rank
    device, peer = machine.device, label.partition("+")[0]
    alone = team.act(lambda: warm(make_step(TASK, peer, size, device), effort.warmup))
    before, begun = machine.held(), time.perf_counter()
    model = team.act(lambda: make_model(TASK, peer, size, device))
    held = team.act(lambda: hold(model, label))
    torch.manual_seed(rank)  # each has clips of its own
    together = team.act(lambda: warm(step_of(TASK, held, peer, size, device), effort.warmup))
    ready = time.perf_counter() - begun
    if not peer.endswith("/graph"):  # which allocates while it warms up, and never again
        machine.held()  # a compiler's trials do not count
    seconds = machine.times(together, 2)
    peaks = team.tell(None if (peak := machine.peak()) is None else peak - before)
    team.act(lambda: compare(held))
    count = max(team.tell(effort.steps(min(seconds))))
    turns = take_turns(team, alone, together, effort=effort, count=count)
    waits = team.tell(machine.alone(together).get("host_seconds"))
    return {
        **compared(*turns, processes=len(waits), clips=size.clips),
        "gradient_bytes": sum(map(nbytes, model.parameters())),
        "peak_bytes": None if None in peaks else max(peaks),
        "host_seconds": None if None in waits else waits,
        "seconds_until_ready": max(team.tell(ready)),
    }


# All of them


def targets(peers: dict[str, Any]) -> list[Target]:
    """Hold the fastest of ours against linear; one that failed does not scale at all."""
    ours = {label: entry for label, entry in peers.items() if label.startswith("aim")}
    if not ours:
        return []
    label = max(ours, key=lambda each: ours[each].get("clips_per_second", 0.0))
    return [Target(f"{label}: share of linear", ours[label].get("efficiency", 0.0), at_least=LINEAR)]


def describe(label: str, entry: dict[str, Any]) -> str:
    """Return a line about a peer."""
    if "error" in entry:
        return f"  {label:<20} {entry['error']}"
    one, apart, all_ = (1e3 * entry[which]["median"] for which in ("alone", "apart", "together"))
    return (
        f"  {label:<20} alone {one:.2f} ms, {entry['processes']} apart {apart:.2f}, together {all_:.2f} ms: "
        f"{100 * entry['efficiency']:.1f} % of linear, {entry['clips_per_second']:,.1f} clips/s, "
        f"{1e-6 * entry['gradient_bytes']:.1f} MB of gradients"
    )


def measure(team: Team, plan: Plan) -> None:
    """Measure every peer; the first process writes the result as it grows."""
    started = time.perf_counter()
    result: dict[str, Any] = {
        **plan.head,
        "complete": False,
        "device": plan.device,
        "size": asdict(plan.size),
        "peers": {},
    }
    for peer in plan.peers:
        torch.compiler.reset()
        team.machine.forget()
        try:
            entry = time_peer(team, peer, plan.size, plan.effort)
        except PeerError as error:
            entry = {"error": str(error)}
        result["peers"][peer] = entry
        # Processes that share a processor do not scale.
        found = targets(result["peers"]) if plan.device == "cuda" and plan.name == TASK.name else []
        result["targets"] = [target.entry() for target in found]
        result["met"] = all(target.met for target in found)
        result["complete"] = len(result["peers"]) == len(plan.peers)
        if team.rank == 0:
            write(plan.name, result, plan.folder)
            print(f"[{time.perf_counter() - started:4.0f} s] {describe(peer, entry)}", flush=True)
    if team.rank == 0:
        print("\n".join(map(str, found)), flush=True)


def work(rank: int, plan: Plan, store: str) -> None:
    """Be one of the processes, which meet in a file."""
    on_gpus = plan.device == "cuda"
    if on_gpus:
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // plan.processes))
    torch._dynamo.config.recompile_limit = 256
    # A graph stays whole, and is the same alone and together. Blocks send while the next is computed anyway.
    torch._dynamo.config.optimize_ddp = False
    meeting = dist.FileStore(store, plan.processes)
    backend = "nccl" if on_gpus else "gloo"
    dist.init_process_group(backend, store=meeting, rank=rank, world_size=plan.processes, timeout=LIMIT)
    measure(Team(rank, Gpu() if on_gpus else Cpu(), dist.new_group(backend="gloo", timeout=LIMIT)), plan)
    dist.destroy_process_group()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read what is asked for, and refuse what the machine does not have."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--out", type=Path, help="folder of the result")
    made.add_argument("--processes", type=int, help="by default as many as there are GPUs; on a CPU 2")
    made.add_argument("--peers", nargs="+", metavar="MODEL/MODE", help=f"by default {' '.join(PEERS['cuda'])}")
    made.add_argument("--large", action="store_true", help="DistributedDataParallel against FSDP2, with a large model")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = made.parse_args(argv)
    check_peers(made, [peer.removesuffix(FLAT).removesuffix(SHARDED) for peer in arguments.peers or ()])
    if arguments.device == "cuda":
        there = torch.cuda.device_count()
        if there < 2:
            made.error(f"at least 2 GPUs are needed, there are {there}; --device cpu tries it out on the processor")
        if arguments.processes is not None and arguments.processes > there:
            made.error(f"--processes: each needs a GPU, and there are {there}, got {arguments.processes}")
    else:
        there = 2
    arguments.processes = there if arguments.processes is None else arguments.processes
    if arguments.processes < 2:
        made.error(f"--processes: one is held against several, so at least 2 are needed, got {arguments.processes}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the result, and return the exit status."""
    arguments = parse(argv)
    plan = Plan(
        processes=arguments.processes,
        peers=tuple(dict.fromkeys(arguments.peers or (LARGE if arguments.large else PEERS[arguments.device]))),
        size=train_step.SIZES["large-8"] if arguments.large and arguments.device == "cuda" else SIZES[arguments.device],
        device=arguments.device,
        effort=EFFORT,
        folder=arguments.out,
        name=TASK.name + "_large" * arguments.large,
        head={
            "benchmark": TASK.name + "_large" * arguments.large,
            "command": command(TASK.name, sys.argv[1:] if argv is None else argv),
            "question": TASK.question,
            "ran_on": record(),
        },
    )
    with tempfile.TemporaryDirectory() as place:
        mp.spawn(work, args=(plan, str(Path(place) / "store")), nprocs=plan.processes)
    result = json.loads(path_of(plan.name, plan.folder).read_text(encoding="utf-8"))
    return 0 if result["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
