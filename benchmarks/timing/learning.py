"""Does a way to compute change what is learned?

The task of ``examples/quickstart.py``: DINOv2 ViT-S/14 learns to tell what happens in a clip, with adapters in its top
half. Each way to compute trains with the same seeds, and a seed sets the adapters' start, the order of the clips and
which of them are mirrored. In two commands, as a machine with a GPU may have neither the weights nor a video decoder:

    python -m benchmarks.timing.learning --prepare FILE  # clips and image model, as the quickstart makes and loads them
    python -m benchmarks.timing.learning --task FILE     # trains, on a GPU; a CPU is for trying out, all in float32

``modules`` runs layer by layer over SDPA. Another way learns the same if the mean change of the final loss and of the
test accuracy, against ``modules`` with the same seed, are at most what two runs of ``modules`` with different seeds
differ by: the square root of 2 times their standard deviation. Were seeds the only difference, n of them would leave
the mean change a standard error of 1 / sqrt(n) of that limit, so six exceed it by chance 1 time in 17, eight 1 in 40.
More seeds do not tighten the limit; the standard error itself, and t, stand in the result for whoever wants to look
closer.

The final loss is the mean of the last `FINAL` steps; of the whole curve the result holds the mean of every ``--window``
steps. The image model is stored in float16, the same rounded weights for every way. Seconds are of several runs at
once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import ROOT, Target, command, reason, record, write
from benchmarks.timing.learning_run import BATCH, DEFAULT, LEARNING_RATE, PEER, WAYS, WINDOW, train, why_not
from benchmarks.timing.learning_summary import summarize, targets
from benchmarks.timing.learning_task import NAME, TaskError, load, prepare


def apart(
    path: Path, name: str, seed: int, *, steps: int, device: str, threads: int | None, window: int = WINDOW
) -> dict[str, Any]:
    """Train in a process of its own, on some number of threads; whatever befalls it, the other runs go on.

    Raises:
        RuntimeError: It failed.
    """
    argv = ["--task", str(path.resolve()), "--one", name, str(seed), "--steps", str(steps), "--device", device]
    argv += ["--window", str(window)]
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.timing.{NAME}", *argv],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    entry: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return entry


def describe(name: str, seed: int, entry: Mapping[str, Any]) -> str:
    """Return a line about a run."""
    if "error" in entry:
        return f"{name:<9} seed {seed}: {entry['error']}"
    line = (
        f"{name:<9} seed {seed}: loss {entry['loss']:.4f}, accuracy {entry['accuracy']:.3f}, {entry['seconds']:.0f} s"
    )
    return line + (", cosine {mean:.5f}, least {least:.5f}".format(**entry["cosine"]) if "cosine" in entry else "")


def measure(
    run: Callable[[str, int], dict[str, Any]],
    ways: Sequence[str],
    *,
    seeds: int,
    jobs: int,
    folder: Path | None,
    about: Mapping[str, Any],
    left_out: Mapping[str, str] | None = None,
) -> int:
    """Train every way with every seed, so many at once, write the result as it grows, and return the exit status.

    Args:
        run: Trains a way with a seed, and returns its entry.
        ways: Their names, `PEER` among them.
        seeds: How many.
        jobs: How many runs go on at a time.
        folder: Of the result.
        about: Further entries of the result, ``task`` with its ``test_clips`` among them.
        left_out: Ways that cannot run, and why.
    """
    started = time.perf_counter()
    result: dict[str, Any] = {
        "benchmark": NAME,
        "question": "final loss and test accuracy of ways to compute, against what seeds change",
        **about,
        "complete": False,
        "ran_on": record(),
        "left_out": dict(left_out or {}),
        "ways": {name: {"words": WAYS[name].words, "runs": {}} for name in ways},
    }

    def keep(**more: Any) -> list[Target]:
        summarize(result["ways"])
        held = targets(result)
        result.update(targets=[each.entry() for each in held], **more)
        write(NAME, result, folder)
        return held

    keep()
    with ThreadPoolExecutor(jobs) as pool:
        # All ways of a seed before the next seed: what is cut short still has pairs.
        futures: dict[Future[dict[str, Any]], tuple[str, int]] = {
            pool.submit(run, name, seed): (name, seed) for seed in range(seeds) for name in ways
        }
        try:
            for future in as_completed(futures):
                name, seed = futures[future]
                try:
                    entry = future.result()
                except Exception as error:  # a run that fails is a result
                    entry = {"error": reason(error)}
                result["ways"][name]["runs"][str(seed)] = entry
                keep()
                print(f"[{time.perf_counter() - started:4.0f} s] {describe(name, seed, entry)}", flush=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # who interrupts does not wait for the rest
    for way in result["ways"].values():
        way["runs"] = dict(sorted(way["runs"].items(), key=lambda item: int(item[0])))
    held = keep(complete=not result["left_out"])
    met = all(target.met for target in held)
    keep(met=met)
    for name, why in result["left_out"].items():
        print(f"{name} was left out: {why}")
    print("\n".join(("targets:", *map(str, held))))
    return 0 if met else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Write the task, or train and write the result; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prepare", type=Path, metavar="FILE", help="write the task")
    what.add_argument("--task", type=Path, metavar="FILE", help="train on it")
    add = parser.add_argument
    add("--clips", type=int, default=1200, help="with --prepare: training clips (%(default)s)")
    add("--test-clips", type=int, default=300, help="with --prepare: test clips (%(default)s)")
    add("--ways", nargs="+", choices=tuple(WAYS), default=DEFAULT, help=f"{PEER} among them")
    add("--seeds", type=int, default=6, help="runs of each way (%(default)s)")
    add("--steps", type=int, default=600, help="of each run (%(default)s)")
    add("--window", type=int, default=WINDOW, help="steps whose mean loss is a number of the result (%(default)s)")
    add(
        "--jobs", type=int, default=8, help="runs at once, as small models leave a GPU waiting for Python (%(default)s)"
    )
    add("--out", type=Path, help="folder of the result")
    add("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--one", nargs=2, metavar=("WAY", "SEED"), help=argparse.SUPPRESS)  # what `apart` calls
    arguments = parser.parse_args(argv)
    path, ways, seeds, steps, window, device = (
        getattr(arguments, name) for name in ("task", "ways", "seeds", "steps", "window", "device")
    )  # fmt: skip
    try:
        if arguments.prepare:
            prepare(arguments.prepare, clips=arguments.clips, test_clips=arguments.test_clips)
            print(f"wrote {arguments.prepare}: {arguments.prepare.stat().st_size / 2**20:.0f} MiB")
            return 0
        task = load(path)
    except TaskError as error:
        parser.error(str(error))
    if arguments.one:
        name, seed = arguments.one
        print(json.dumps(train(task, name, int(seed), steps=steps, device=device, window=window)))
        return 0
    if PEER not in ways:
        parser.error(f"--ways: the others are held against {PEER}, which is missing")
    if seeds < 2:
        parser.error(f"--seeds: the noise is that between seeds, so at least 2 are needed, got {seeds}")
    if min(steps, arguments.jobs, window) < 1:
        parser.error(f"--steps, --jobs and --window must be at least 1, got {steps}, {arguments.jobs} and {window}")
    left_out = {name: why for name in ways if (why := why_not(name, device)) is not None}
    about = {
        "command": command(NAME, f"--task FILE --ways {' '.join(ways)} --seeds {seeds} --steps {steps}".split()),
        "task": {**task.about, "train_clips": len(task.train[1]), "test_clips": len(task.test[1])},
        "settings": {
            "device": device,
            "steps": steps,
            "window": window,
            "batch": BATCH,
            "learning_rate": LEARNING_RATE,
        },
    }
    run = partial(apart, path, steps=steps, window=window, device=device, threads=1 if arguments.jobs > 1 else None)
    chosen = [name for name in ways if name not in left_out]
    return measure(
        run, chosen, seeds=seeds, jobs=arguments.jobs, folder=arguments.out, about=about, left_out=left_out
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
