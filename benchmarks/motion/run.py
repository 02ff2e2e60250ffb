"""Run experiments on a GPU, and add a row for each run to the results.

    python -m benchmarks.motion.run ladder ways --photographs FILE --weights dinov2-small=FILE

Runs that the results hold already are left out, so a command that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import functools
import multiprocessing
import queue
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import aim_adapters as aim
from benchmarks.harness import record
from benchmarks.motion.cached import cached_features, new_probe
from benchmarks.motion.costs import SIZE as SIZE_OF_COSTS
from benchmarks.motion.costs import Cost, measure
from benchmarks.motion.experiments import CLIPS, EXPERIMENTS, SIZE, Job
from benchmarks.motion.photographs import load_photographs
from benchmarks.motion.results import CLASS_COLUMNS, COLUMNS, COST_COLUMNS, FOLDER, append_rows, read_rows
from benchmarks.motion.task import Task, load_task
from benchmarks.motion.trainer import Clips, Plan, Training, predict, train_together
from benchmarks.motion.ways import BACKBONES, build, groups_of, load_backbone, normalized

PROBES = ("probe", "attentive")
PER_CLASS = ("spatial", "joint", "conv", "full")  # Figure 5


class Sources(NamedTuple):
    """Where a worker takes what it needs.

    Attributes:
        photographs: The bundle of photographs.
        weights: Files of weights by backbone.
        device: Where it runs.
        end: Time, of `time.time`, after which no job is begun.
        facts: Columns that are the same in all rows.
    """

    photographs: Path
    weights: dict[str, Path]
    device: str
    end: float
    facts: dict[str, str]


class Worker:
    """Runs jobs, one after another, and keeps what they share."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.task = functools.lru_cache(self._task)
        self.image_model = functools.lru_cache(self._image_model)
        self.features = functools.lru_cache(maxsize=2)(self._features)

    def run(self, job: Job) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Train and test a job's seeds, and return their rows, and those of classes."""
        start = time.perf_counter()
        task = self.task(job.variant, job.frames)
        normalize = functools.partial(normalized, backbone=BACKBONES[job.backbone])
        trainings = [
            self._training(job, seed, order=order)
            for seed in job.seeds
            for order in ((seed, seed + 100) if job.way == "average" else (seed,))
        ]
        train_together(trainings)
        models = [training.model for training in trainings]
        if job.way == "average":
            models = [_average(*pair) for pair in zip(models[::2], models[1::2], strict=True)]
        test, test_normalize = task.test, normalize
        if job.way in PROBES:
            test, test_normalize = Clips(self.features(job)[1], task.test.labels), _floats
        elif job.way == "linear":
            for model in models:
                aim.merge_adapters(model)
        elif job.way == "resized":
            test = self.task(job.variant, 2 * job.frames).test
            for model in models:
                aim.set_num_frames(model, 2 * job.frames)
        rows, classes = [], []
        for seed, model in zip(job.seeds, models, strict=True):
            found = predict(model, Clips(*test), normalize=test_normalize)
            rows.append({**_row(job, seed), **_scores(found, task), **self.sources.facts})
            if job.experiment in ("ladder", "ways") and job.way in PER_CLASS:
                classes += _per_class(job, seed, found, task)
        seconds = (time.perf_counter() - start) / len(job.seeds)
        return [row | {"seconds": seconds} for row in rows], classes

    def _training(self, job: Job, seed: int, *, order: int) -> Training:
        task = self.task(job.variant, job.frames)
        clips = Clips(task.train.frames[: job.clips], task.train.labels[: job.clips])
        normalize = functools.partial(normalized, backbone=BACKBONES[job.backbone])
        together = 1 if job.variant == "appearance" else len(task.classes)
        plan = Plan(job.steps, job.batch, job.learning_rate, together=together, **dict(job.plan))
        torch.manual_seed(seed)
        if job.way in PROBES:
            train = self.features(job)[0]
            model: nn.Module = new_probe(job.way, train, len(task.classes))
            clips, normalize = Clips(train[: job.clips], clips.labels), _floats
        else:
            way = "joint" if job.way in ("average", "resized") else job.way
            model = build(
                way, self.image_model(job.backbone), classes=len(task.classes), frames=job.frames,
                options=dict(job.options),
            )  # fmt: skip
            if job.way == "graphs":
                example = normalize(clips.frames[: job.batch])
                with torch.autocast(self.sources.device, torch.bfloat16):
                    aim.graph(model.train(), example)
                plan = plan._replace(record=False)
        return Training(
            model.to(self.sources.device),
            groups_of(model, job.way, plan.weight_decay),
            clips,
            plan,
            seed=order,
            normalize=normalize,
        )

    def _task(self, variant: str, frames: int) -> Task:
        photographs = load_photographs(self.sources.photographs, self.sources.device)
        return load_task(variant, photographs, clips=CLIPS, frames=frames, size=SIZE, device=self.sources.device)

    def _image_model(self, backbone: str) -> nn.Module:
        return load_backbone(backbone, self.sources.weights[backbone], SIZE).to(self.sources.device)

    def _features(self, job: Job) -> tuple[Tensor, Tensor]:
        task = self.task(job.variant, job.frames)
        model = copy.deepcopy(self.image_model(job.backbone))
        normalize = functools.partial(normalized, backbone=BACKBONES[job.backbone])
        train, test = (
            cached_features(model, part.frames, normalize=normalize, tokens=job.way == "attentive")
            for part in (task.train, task.test)
        )
        return train, test


def _floats(features: Tensor) -> Tensor:
    return features.float()


def _average(first: nn.Module, second: nn.Module) -> nn.Module:
    """Return the first of two wrapped models, with the mean of both's parameters."""
    with torch.no_grad():
        for own, other in zip(aim.trainable_parameters(first), aim.trainable_parameters(second), strict=True):
            own.lerp_(other, 0.5)
    return first


def _row(job: Job, seed: int) -> dict[str, Any]:
    return {
        "experiment": job.experiment, "variant": job.variant, "way": job.name, "backbone": job.backbone, "seed": seed,
        "frames": job.frames, "clips": job.clips, "steps": job.steps, "batch": job.batch, "lr": job.learning_rate,
    }  # fmt: skip


def _scores(found: Tensor, task: Task) -> dict[str, float]:
    """Return the share of clips whose class is right, whose group is, and of those of pairs the share in order."""
    groups = torch.tensor(task.groups, device=found.device)
    right, group = found == task.test.labels, groups[found] == groups[task.test.labels]
    paired = group & (groups.bincount()[groups[task.test.labels]] > 1)
    order = right[paired].float().mean() if bool(paired.any()) else torch.zeros(())
    return {
        "accuracy": 100 * float(right.float().mean()),
        "what": 100 * float(group.float().mean()),
        "order": 100 * float(order),
    }


def _per_class(job: Job, seed: int, found: Tensor, task: Task) -> list[dict[str, Any]]:
    rows = []
    for index, name in enumerate(task.classes):
        chosen = task.test.labels == index
        accuracy = 100 * float((found[chosen] == index).float().mean())
        rows.append({"variant": job.variant, "way": job.name, "seed": seed, "class": name, "accuracy": accuracy})
    return rows


def _work(jobs: Any, results: Any, sources: Sources) -> None:
    worker = Worker(sources)
    while time.time() < sources.end:
        try:
            job = jobs.get(timeout=1)
        except queue.Empty:
            break
        try:
            results.put((job, *worker.run(job)))
        except Exception as error:  # one job's failure is told, the others go on
            results.put((job, f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-4)}", None))
        torch.cuda.empty_cache()
    results.put(None)


def _measure_costs(jobs: list[Job], sources: Sources, path: Path) -> None:
    """Measure the ways of jobs, each once, alone on the GPU, and add them to a file."""
    known = {(row["way"], row["backbone"]) for row in read_rows(path)}
    models: dict[str, nn.Module] = {}
    for way, backbone in dict.fromkeys((costs_as(job), job.backbone) for job in jobs):
        if (way, backbone) in known:
            continue
        if backbone not in models:
            models[backbone] = load_backbone(backbone, sources.weights[backbone], SIZE_OF_COSTS).to(sources.device)
        try:
            cost = measure(way, models[backbone], backbone)
        except Exception as error:
            print(f"FAILED cost of {way}: {type(error).__name__}: {error}", flush=True)
            continue
        append_rows(
            path, COST_COLUMNS, [_rounded({"way": way, "backbone": backbone, **cost._asdict(), **sources.facts})]
        )
        print(f"{way}: {cost}", flush=True)


def costs_as(job: Job) -> str:
    """Return the way whose cost a job's is: what is trained otherwise costs the same."""
    return "joint" if job.way in ("average", "resized", "random") else job.way


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", choices=[*EXPERIMENTS, "all"], help="what to run")
    parser.add_argument("--photographs", type=Path, required=True, help="written by benchmarks.motion.photographs")
    parser.add_argument("--weights", action="append", required=True, metavar="NAME=FILE", help="of a backbone")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the results")
    parser.add_argument("--done", type=Path, default=None, help="folder of earlier results; by default --out")
    parser.add_argument("--workers", type=int, default=3, help="processes that share the GPU")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no job begins later than this")
    parser.add_argument("--steps", type=int, help="of each run, to try")
    parser.add_argument("--ways", nargs="*", help="only these")
    parser.add_argument("--seeds", type=int, help="so many of them")
    parser.add_argument("--costs", action="store_true", help="measure costs first, alone on the GPU")
    parser.add_argument("--device", default="cuda")
    return parser.parse_args(argv)


def _wanted(settings: argparse.Namespace) -> list[Job]:
    names = EXPERIMENTS if "all" in settings.experiments else dict.fromkeys(settings.experiments)
    jobs = [job for name in names for job in EXPERIMENTS[name]]
    if settings.ways:
        jobs = [job for job in jobs if job.name in settings.ways]
    if settings.steps:
        jobs = [job._replace(steps=settings.steps) for job in jobs]
    if settings.seeds:
        jobs = [job._replace(seeds=tuple(range(settings.seeds))) for job in jobs]
    done = {
        (*(row[name] for name in ("experiment", "variant", "way", "backbone")),
         *(int(row[name]) for name in ("seed", "frames", "clips")))
        for row in read_rows((settings.done or settings.out) / "runs.csv")
    }  # fmt: skip
    left = [job._replace(seeds=tuple(seed for seed in job.seeds if job.key(seed) not in done)) for job in jobs]
    return [job for job in left if job.seeds]


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for, and return the exit status: how many jobs failed."""
    settings = _parse(argv)
    jobs = _wanted(settings)
    about = record()
    facts = {"gpu": (about["gpus"] or ["CPU"])[0], "commit": about["commit"]}
    weights = {name: Path(file) for name, _, file in (item.partition("=") for item in settings.weights)}
    sources = Sources(settings.photographs, weights, settings.device, time.time() + settings.seconds, facts)
    if settings.costs:
        _measure_costs(jobs, sources, settings.out / "costs.csv")
    costs = {(row["way"], row["backbone"]): row for row in read_rows(settings.out / "costs.csv")}
    torch.cuda.empty_cache()
    context = multiprocessing.get_context("spawn")
    waiting, results = context.Queue(), context.Queue()
    for job in jobs:
        waiting.put(job)
    workers = [context.Process(target=_work, args=(waiting, results, sources)) for _ in range(settings.workers)]
    for worker in workers:
        worker.start()
    failed, left = 0, len(workers)
    while left:
        try:
            found = results.get(timeout=5)
        except queue.Empty:
            left = sum(worker.is_alive() for worker in workers)
            continue
        if found is None:
            left -= 1
            continue
        job, rows, classes = found
        if isinstance(rows, str):
            failed += 1
            print(f"FAILED {job.experiment} {job.variant} {job.name}: {rows}", flush=True)
            continue
        cost = costs.get((costs_as(job), job.backbone), {})
        for row in rows:
            row["seconds"] = round(row["seconds"] / len(workers), 2)  # they share the GPU
            row |= {name: cost.get(name, "") for name in Cost._fields}
        append_rows(settings.out / "runs.csv", COLUMNS, [_rounded(row) for row in rows])
        append_rows(settings.out / "classes.csv", CLASS_COLUMNS, [_rounded(row) for row in classes])
        shown = ", ".join(f"{row['accuracy']:.1f} ({row['what']:.0f}/{row['order']:.0f})" for row in rows)
        about_run = f"{job.experiment} {job.variant} {job.name} {job.learning_rate:g}"
        print(f"{about_run}: {shown}; {rows[0]['seconds']:.1f} s", flush=True)
    for worker in workers:
        worker.join()
    return min(failed, 100)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}


if __name__ == "__main__":
    sys.exit(main())
