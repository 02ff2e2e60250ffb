"""How fast is this library on your GPU? Three minutes, and a table in Markdown to send in.

``python -m benchmarks.timing.this_gpu`` holds attention's kernels against float64 and whole models against float32,
then times them: one layer's attention against SDPA and against the bandwidth of a copy, steps of training and of
inference against the same model without what is fused, eager and replayed from CUDA graphs. Numbers of clips that do
not fit in memory are left out. What is wrong is told in the table, and by the exit status.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import aim_adapters as aim
from benchmarks.harness import Clock, Cpu, Effort, Gpu, GraphClock, Machine, WallClock, ceilings, reason, record
from benchmarks.timing import inference, spatial_attention, temporal_attention, train_step
from benchmarks.timing.peers import Batch, Size
from benchmarks.timing.tasks import Task, agree, agreement, make_model

ISSUES = "https://github.com/aim-adapters/aim-adapters/issues"
TEMPORAL = tuple(
    temporal_attention.Case("here", frames, heads=heads, dim=dim, peers=("triton", "sdpa"), images=128)
    for frames, heads, dim in ((8, 12, 64), (32, 12, 64), (16, 16, 80), (128, 12, 64))
)
SPATIAL = (
    spatial_attention.Case(197, frames=128),
    spatial_attention.Case(49, frames=32, heads=4, dim=32, bias=True, windows=64, masked=True),
)
EFFORT = Effort(rounds=4, copy_bytes=(2**28,), side=4096, warmup=1.0)
TASKS = (train_step.TASK, inference.TASK)
SIZE, CLIPS = train_step.SIZES["base-8"], (1, 8, 32)
WAYS = {"ours": "aim", "ours, `aim.graph`": "aim", "plain": "plain"}  # and whose models they are
STEPS, WARMUP = 20, 3


def heading(machine: Machine) -> list[str]:
    """Name the device and the versions."""
    ran_on = record()
    where = ran_on["processor"]
    if machine.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        where = f"{properties.name} (sm_{properties.major}{properties.minor}, {memory})"
    versions = ", ".join(f"{name} {version}" for name, version in ran_on["versions"].items())
    return [f"### {where}", "", f"{versions}, CUDA {ran_on['cuda']}, {ran_on['system']}, commit `{ran_on['commit']}`"]


def attention(clock: Clock, device: str, bandwidth: float) -> Iterator[str]:
    """Yield the lines of a table of one layer's attention."""
    yield "| one layer's attention, bfloat16 | ours | share of copy | against SDPA |"
    yield "|---|---:|---:|---:|"
    for module, cases in ((temporal_attention, TEMPORAL), (spatial_attention, SPATIAL)):
        for case in cases:
            for row in module.measure_case(case, clock, device, bandwidth=bandwidth, effort=EFFORT):
                yield f"| {_name(case)}, {row['pass']} | {_cells(row['peers'])} |"


def _name(case: temporal_attention.Case | spatial_attention.Case) -> str:
    if isinstance(case, temporal_attention.Case):
        return f"over {case.num_frames} frames, {case.heads} × {case.dim}"
    return f"over {case.tokens} tokens, {case.heads} × {case.dim}{', bias and mask' * case.masked}"


def _cells(peers: Mapping[str, Mapping[str, Any]]) -> str:
    ours = peers["triton"]
    if "error" in ours:
        return f"FAILED: {ours['error'].splitlines()[0]} | | "
    others = [entry["median"] for name, entry in peers.items() if name != "triton" and "median" in entry]
    times = f"{min(others) / ours['median']:.1f} ×" if others else ""
    return f"{1e3 * ours['median']:.3f} ms | {100 * ours['share_of_copy']:.0f} % | {times}"


def steps(machine: Machine, clips: Sequence[int]) -> Iterator[str]:
    """Yield the lines of a table of whole models' steps, each task held to float32 before it is timed."""
    ways = [way for way in WAYS if machine.device == "cuda" or "graph" not in way]
    yield f"| {SIZE.name}, {SIZE.frames} frames, {SIZE.dtype} | clips | {' | '.join(ways)} |"
    yield "|---|---:|" + "---:|" * len(ways)
    for task in TASKS:
        errors = agreement(task, SIZE, machine.device)
        if not agree(errors):
            yield f"| {task.name} | | WRONG: {errors} |"
        for count in clips:
            cells = [_time(machine, task, replace(SIZE, clips=count), way) for way in ways]
            yield f"| {task.name} | {count} | {' | '.join(cells)} |"


def _time(machine: Machine, task: Task, size: Size, way: str) -> str:
    """Return the time and the peak memory of a step, or why there is none."""
    machine.forget()
    machine.held()
    try:
        model = make_model(task, f"{WAYS[way]}/eager", size, machine.device)
        batch = size.batch(machine.device)
        if "graph" in way:
            _graph(model, task, batch, size)
        step = task.prepare(model, batch, size)
        machine.times(step, WARMUP)
        milliseconds = 1e3 * statistics.median(machine.times(step, STEPS))
    except torch.OutOfMemoryError:
        return "does not fit"
    except Exception as error:  # whatever goes wrong on an unknown device is its result
        return f"FAILED: {reason(error)}"
    peak = machine.peak()
    return f"{milliseconds:.1f} ms" if peak is None else f"{milliseconds:.1f} ms, {peak / 2**30:.1f} GiB"


def _graph(model: nn.Module, task: Task, batch: Batch, size: Size) -> None:
    with torch.autocast(batch[0].device.type, size.low), nullcontext() if task.train else torch.inference_mode():
        aim.graph(model, batch[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Verify, time and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", nargs="+", type=int, default=CLIPS, help="of the steps of whole models")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU")
    machine, clock = (Gpu(), GraphClock()) if arguments.device == "cuda" else (Cpu(), WallClock())
    started, printed = time.perf_counter(), []

    def show(*lines: str) -> None:
        printed.extend(lines)
        print(*lines, sep="\n", flush=True)

    show(*heading(machine), "")
    rates = ceilings(clock, machine.device, EFFORT)
    bandwidth = rates["copy_bytes_per_second"]
    show(f"copy {bandwidth / 1e9:.0f} GB/s, bf16 product {rates['bf16_flop_per_second'] / 1e12:.0f} TFLOP/s", "")
    for line in attention(clock, machine.device, bandwidth):
        show(line)
    show("")
    for line in steps(machine, arguments.clips):
        show(line)
    print(f"\n{time.perf_counter() - started:.0f} s. Please send in what stands above: {ISSUES}", file=sys.stderr)
    return 1 if any(word in line for line in printed for word in ("WRONG", "FAILED")) else 0


if __name__ == "__main__":
    sys.exit(main())
