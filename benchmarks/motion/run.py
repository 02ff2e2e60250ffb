"""Run experiments on all GPUs, and add a row for each run to the results.

    python -m benchmarks.motion.photographs --out FILE
    python -m benchmarks.motion.weights --out FOLDER
    python -m benchmarks.motion.run all --costs --photographs FILE --weights FOLDER

Runs that the results hold already are left out, so a command that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import queue
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aim_adapters import AIMError
from benchmarks.harness import record
from benchmarks.motion.costs import SIZE as SIZE_OF_COSTS
from benchmarks.motion.costs import measure
from benchmarks.motion.experiments import COSTS_AS, EXPERIMENTS, Job
from benchmarks.motion.programs import VARIANTS
from benchmarks.motion.results import CLASS_COLUMNS, COLUMNS, COST_COLUMNS, FOLDER, append_rows, load, read_rows
from benchmarks.motion.ways import BACKBONES, TUNED, load_backbone, weights_of
from benchmarks.motion.worker import Sources, Worker

FAILURES = (AIMError, ImportError, RuntimeError, ValueError, ArithmeticError)  # of one job, which the others survive

SLOW = dict.fromkeys((*TUNED, "lora", "lora-temporal", "modules"), 3) | {"average": 2}  # others: 1


def _serve(jobs: Any, results: Any, sources: Sources, gpu: int) -> None:
    if sources.device == "cuda":
        torch.cuda.set_device(gpu)
    worker = Worker(sources)
    while time.time() < sources.end:
        try:
            job = jobs.get(timeout=1)
        except queue.Empty:
            break
        try:
            results.put((job, *worker.run(job)))
        except FAILURES as error:
            results.put((job, f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-4)}", None))
        torch.cuda.empty_cache()
    results.put(None)


def _measure_costs(jobs: list[Job], sources: Sources, path: Path, *, done: Path) -> None:
    """Measure the ways of jobs, each once, alone on the GPU, and add to a file those that another does not have."""
    known = {(row["way"], row["backbone"]) for row in read_rows(done)}
    models: dict[str, nn.Module] = {}
    for way, backbone in dict.fromkeys((COSTS_AS.get(job.name, job.way), job.backbone) for job in jobs):
        if (way, backbone) in known:
            continue
        if backbone not in models:
            models[backbone] = load_backbone(backbone, sources.weights, SIZE_OF_COSTS).to(sources.device)
        try:
            cost = measure(way, models[backbone], backbone)
        except FAILURES as error:
            print(f"FAILED cost of {way}: {type(error).__name__}: {error}", flush=True)
            continue
        append_rows(
            path, COST_COLUMNS, [_rounded({"way": way, "backbone": backbone, **cost._asdict(), **sources.facts})]
        )
        print(f"{way}: {cost}", flush=True)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, got {text!r}")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"expected a learning rate above 0, got {text!r}")
    return rate


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", choices=[*EXPERIMENTS, "all"], help="what to run")
    parser.add_argument("--photographs", type=Path, required=True, help="written by benchmarks.motion.photographs")
    parser.add_argument("--weights", type=Path, required=True, help="folder that benchmarks.motion.weights wrote")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the results")
    parser.add_argument("--done", type=Path, default=None, help="folder of earlier results; by default --out")
    parser.add_argument("--workers", type=int, default=3, help="processes that share a GPU; 0: train nothing")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no job begins later than this")
    parser.add_argument("--steps", type=_positive, help="of each run, to try; with an --out of its own")
    parser.add_argument("--rate", type=_rate, help="learning rate of each run, to try, too")
    parser.add_argument("--ways", nargs="+", help="only these")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="only these")
    parser.add_argument("--seeds", type=_positive, help="so many of them")
    parser.add_argument("--side-by-side", type=_positive, help="of a job's seeds; fewer take less memory")
    parser.add_argument("--costs", action="store_true", help="measure costs first, alone on the GPU")
    parser.add_argument("--device", default="cuda")
    settings = parser.parse_args(argv)
    if (settings.steps or settings.rate) and settings.out == FOLDER:
        parser.error("--steps and --rate are to try: pass an --out of their own, where no other runs are")
    return settings


def _wanted(settings: argparse.Namespace) -> list[Job]:
    """Return the jobs that are asked for, whether they have run or not."""
    names = EXPERIMENTS if "all" in settings.experiments else dict.fromkeys(settings.experiments)
    jobs = [job for name in names for job in EXPERIMENTS[name]]
    there = {backbone for backbone in BACKBONES if weights_of(backbone, settings.weights).is_file()}
    for backbone in dict.fromkeys(job.backbone for job in jobs if job.backbone not in there):
        print(f"LEFT OUT: jobs of {backbone}: no {weights_of(backbone, settings.weights)}", flush=True)
    jobs = [job for job in jobs if job.backbone in there]
    if settings.ways:
        jobs = [job for job in jobs if job.name in settings.ways]
    if settings.variants:
        jobs = [job for job in jobs if job.variant in settings.variants]
    if settings.steps:
        jobs = [job._replace(steps=settings.steps) for job in jobs]
    if settings.rate:
        jobs = [job._replace(rate=settings.rate) for job in jobs]
    if settings.seeds:
        jobs = [job._replace(seeds=job.seeds[: settings.seeds]) for job in jobs]
    return jobs


def _not_done(jobs: list[Job], folder: Path) -> list[Job]:
    """Return the jobs and seeds of which a folder of results has no row."""
    done = {run.key for run in load(folder).runs}
    jobs = [job._replace(seeds=tuple(seed for seed in job.seeds if job.key(seed) not in done)) for job in jobs]
    return [job for job in jobs if job.seeds]


def _parts(job: Job, most: int | None) -> list[Job]:
    """Return a job in parts of so many seeds at most."""
    size = most or len(job.seeds)
    return [job._replace(seeds=job.seeds[first : first + size]) for first in range(0, len(job.seeds), size)]


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for, and return the exit status: how many jobs have no result."""
    settings = _parse(argv)
    wanted = _wanted(settings)
    done = settings.done or settings.out
    jobs = [part for job in _not_done(wanted, done) for part in _parts(job, settings.side_by_side)]
    about = record()
    facts = {"gpu": (about["gpus"] or ["CPU"])[0], "commit": about["commit"]}
    end = time.time() + settings.seconds
    sources = Sources(settings.photographs, settings.weights, settings.device, end, facts)
    if settings.costs:
        _measure_costs(wanted, sources, settings.out / "costs.csv", done=done / "costs.csv")
    finished = _train(jobs, sources, settings.out, workers=settings.workers) if settings.workers else len(jobs)
    return min(len(jobs) - finished, 100)


def _train(jobs: list[Job], sources: Sources, out: Path, *, workers: int) -> int:
    """Run jobs, in as many processes on each GPU, add their rows to the results, and return how many finished."""
    torch.cuda.empty_cache()
    context = multiprocessing.get_context("spawn")
    waiting, results = context.Queue(), context.Queue()
    for job in sorted(jobs, key=_work_of, reverse=True):  # so that processes end at about the same time
        waiting.put(job)
    gpus = range(torch.cuda.device_count() if sources.device == "cuda" else 1)
    places = [gpu for gpu in gpus for _ in range(workers)]
    processes = [context.Process(target=_serve, args=(waiting, results, sources, gpu)) for gpu in places]
    for process in processes:
        process.start()
    failed, finished, left = 0, 0, len(processes)
    while left:
        try:
            found = results.get(timeout=5)
        except queue.Empty:
            left = sum(process.is_alive() for process in processes)
            continue
        if found is None:
            left -= 1
            continue
        job, rows, classes = found
        if isinstance(rows, str):
            failed += 1
            print(f"FAILED {_words(job)}: {rows}", flush=True)
            continue
        finished += 1
        for row in rows:
            row["seconds"] /= workers  # they share a GPU
        # Classes first: what has a row in runs.csv is not run again.
        append_rows(out / "classes.csv", CLASS_COLUMNS, [_rounded(row) for row in classes])
        append_rows(out / "runs.csv", COLUMNS, [_rounded(row) for row in rows])
        shown = ", ".join(f"{row['accuracy']:.1f} ({row['what']:.0f}/{row['order']:.0f})" for row in rows)
        print(f"{_words(job)}: {shown}; {rows[0]['seconds']:.1f} s", flush=True)
    for process in processes:
        process.join()
    if failed + finished < len(jobs):
        print(f"NOT RUN: {len(jobs) - failed - finished} of {len(jobs)} jobs; the same command goes on", flush=True)
    return finished


def _work_of(job: Job) -> int:
    """Return how many frames a job's seeds train on, times how slow its way is: about how long it takes."""
    return job.steps * job.batch * job.frames * len(job.seeds) * SLOW.get(job.way, 1)


def _words(job: Job) -> str:
    seeds = ", ".join(map(str, job.seeds))
    return f"{job.experiment} {job.variant} {job.name}, learning rate {job.learning_rate:g}, seeds {seeds}"


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}


if __name__ == "__main__":
    sys.exit(main())
