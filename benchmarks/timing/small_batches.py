"""What do few clips cost without a compiler, beside the layers one by one?

``python -m benchmarks.timing.small_batches`` on a GPU, in less than three minutes. Training steps and inference of
ViT-B/16 with 1, 2, 4 and 8 clips of 8 frames: ours as it comes, and replayed from the CUDA graphs of ``aim.graph``; the
same model layer by layer; and the way of the reference implementation. It is ``benchmarks.timing.train_step`` and
``benchmarks.timing.inference`` in brief, and their files hold the results. ``--compile`` adds ours compiled as a whole,
which takes a compiler half a minute for each size.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.harness import path_of
from benchmarks.timing import inference, train_step
from benchmarks.timing.step_command import SMALL, key_of

PEERS = ("reference/eager", "plain/eager", "aim/eager", "aim/recorded")
CLIPS = (1, 2, 4, 8)
WORDS = {train_step: "training step", inference: "inference"}


def line(peer: str, tables: Sequence[dict[str, dict[str, float]]]) -> str:
    """Return a peer's milliseconds by the number of clips."""
    times = [1e3 * table[peer]["median"] if "median" in table.get(peer, {}) else float("nan") for table in tables]
    return f"  {peer:<18}" + "".join(f"{time:9.2f}" for time in times)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the results, print them as a table, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--clips", nargs="+", type=int, default=CLIPS)
    parser.add_argument("--compile", action="store_true", help="also ours, compiled as a whole")
    arguments = parser.parse_args(argv)
    on_gpu = torch.cuda.is_available()
    name, device = ("base-8", "cuda") if on_gpu else (SMALL, "cpu")
    peers = (PEERS if on_gpu else PEERS[:-1]) + ("aim/graph",) * arguments.compile
    words = ["--brief", "--device", device, "--sizes", name, "--clips", *map(str, arguments.clips), "--peers", *peers]
    words += ["--out", str(arguments.out)] if arguments.out else []
    statuses = [module.main(words) for module in WORDS]
    for module, what in WORDS.items():
        found = json.loads(path_of(module.TASK.name, arguments.out).read_text(encoding="utf-8"))["tables"]
        keys = [key_of(replace(module.SIZES[name], clips=clips), device) for clips in arguments.clips]
        print(f"{what}, ms; clips:  " + "".join(f"{clips:9}" for clips in arguments.clips))
        print("\n".join(line(peer, [found[key]["peers"] for key in keys]) for peer in peers))
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
