"""What does a step cost the host, beside that of the plain layers?

``python -m benchmarks.timing.host_share``, on any machine. The model is so small that arithmetic hardly counts: 12
blocks 64 wide, one clip of two frames, on one thread of the processor. What is left is what Python and PyTorch do
around the arithmetic, which is what bounds eager steps of few clips on a GPU too. Ours is a wrapped model as it
comes; the peer is the same model with ``fused=False``, every layer called by itself. Both take turns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

import aim_adapters as aim
from benchmarks.harness import Target, Timing, WallClock, alternate, command, record, write
from benchmarks.timing import inference, train_step
from benchmarks.timing.peers import Size
from benchmarks.timing.tasks import Task

NAME = "host_share"
GOALS = {train_step.TASK: 0.6, inference.TASK: 0.7}
WORDS = {True: "training step", False: "inference"}
SIZE = Size("vit_tiny_patch16_224", clips=1, frames=2, resolution=32, classes=10, dtype="float32")
WIDTH, HEADS = 64, 4


def make(task: Task, *, fused: bool) -> nn.Module:
    """Return a wrapped model, fused or layer by layer."""
    torch.manual_seed(0)
    model = aim.wrap_image_model(SIZE.build(embed_dim=WIDTH, num_heads=HEADS), SIZE.frames, num_classes=SIZE.classes)
    aim.set_execution(model, fused="auto" if fused else False)
    return model.train(task.train)


def measure(task: Task, *, rounds: int, batch: float) -> dict[str, Timing]:
    """Time ours and the plain layers in turn, in rounds of some seconds each."""
    clock, clips = WallClock(), SIZE.batch("cpu")
    ways = {"ours": True, "layer by layer": False}
    replays = {name: clock.prepare(task.prepare(make(task, fused=way), clips, SIZE)) for name, way in ways.items()}
    return alternate(replays, rounds=rounds, batch=batch)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the result")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=float, default=0.3, help="seconds of a round")
    arguments = parser.parse_args(argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {task: measure(task, rounds=arguments.rounds, batch=arguments.batch) for task in GOALS}
    finally:
        torch.set_num_threads(threads)
    targets, timings = [], {}
    for task, timing in found.items():
        ratio = timing["ours"].median / timing["layer by layer"].median
        targets.append(Target(f"{WORDS[task.train]}: share of the time layer by layer", ratio, at_most=GOALS[task]))
        timings |= {f"{WORDS[task.train]}, {name}": asdict(each) for name, each in timing.items()}
    met = all(target.met for target in targets)
    result = {
        "benchmark": NAME,
        "command": command(NAME, sys.argv[1:] if argv is None else argv),
        "question": "what a step costs the host, beside that of the plain layers",
        "size": {**asdict(SIZE), "embed_dim": WIDTH, "num_heads": HEADS},
        "targets": [target.entry() for target in targets],
        "met": met,
        "timings": timings,
        "ran_on": record(),
    }
    write(NAME, result, arguments.out)
    for name, timing in timings.items():
        print(f"  {name:<32} {1e3 * timing['median']:8.2f} ms")
    print("\n".join(map(str, targets)))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
