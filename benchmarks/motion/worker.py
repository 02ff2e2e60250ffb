"""One job of an experiment: trained, tested, and told as rows."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import aim_adapters as aim
from benchmarks.motion.cached import cached_features, new_probe
from benchmarks.motion.experiments import CLIPS, Job
from benchmarks.motion.photographs import load_photographs
from benchmarks.motion.task import Clips, Task, load_task
from benchmarks.motion.trainer import Plan, Training, predict, train_together
from benchmarks.motion.ways import BACKBONES, build, groups_of, load_backbone, normalized

PROBES = ("probe", "attentive")
PER_CLASS = ("spatial", "joint", "conv", "full", "full-space-time")  # Figure 5


class Sources(NamedTuple):
    """Where a worker takes what it needs.

    Attributes:
        photographs: The bundle of photographs.
        weights: Folder of the backbones' weights.
        device: Where it runs.
        end: Time, of `time.time`, after which no job is begun.
        facts: Columns that are the same in all rows.
    """

    photographs: Path
    weights: Path
    device: str
    end: float
    facts: dict[str, str]


class Worker:
    """Runs jobs, one after another, and keeps what they share."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.task = functools.lru_cache(maxsize=3)(self._task)  # of 2 to 6 GiB each, as are features
        self.image_model = functools.lru_cache(self._image_model)
        self.features = functools.lru_cache(maxsize=2)(self._features)

    def run(self, job: Job) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Train and test a job's seeds, and return their rows, and those of classes."""
        start = time.perf_counter()
        task, normalize = self.task_of(job), _reading(job)
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
            test, test_normalize = task.test._replace(frames=self.features(job)[1]), _floats
        elif job.way == "linear":
            for model in models:
                aim.merge_adapters(model)
        elif job.way == "resized":
            test = self.task_of(job._replace(frames=2 * job.frames)).test
            for model in models:
                aim.set_num_frames(model, 2 * job.frames)
        rows, classes = [], []
        for seed, model in zip(job.seeds, models, strict=True):
            found = predict(model, test, normalize=test_normalize)
            rows.append({**_row(job, seed), **_scores(found, task), **self.sources.facts})
            if job.experiment in ("ladder", "ways") and job.way in PER_CLASS:
                classes += _per_class(job, seed, found, task)
        seconds = (time.perf_counter() - start) / len(job.seeds)
        return [row | {"seconds": seconds} for row in rows], classes

    def _training(self, job: Job, seed: int, *, order: int) -> Training:
        task, normalize = self.task_of(job), _reading(job)
        clips = Clips(task.train.frames[: job.clips], task.train.labels[: job.clips])
        together = 1 if job.variant == "appearance" else len(task.classes)
        plan = Plan(job.steps, job.batch, job.learning_rate, together=together, **dict(job.plan))
        image_model = self.image_model(job.backbone)
        train = self.features(job)[0] if job.way in PROBES else None
        torch.manual_seed(seed)  # after what is kept, which draws numbers the first time
        if train is not None:
            model: nn.Module = new_probe(job.way, train, len(task.classes))
            clips, normalize = clips._replace(frames=train[: job.clips]), _floats
        else:
            way = "joint" if job.way in ("average", "resized") else job.way
            model = build(
                way, image_model, classes=len(task.classes), frames=job.frames,
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

    def task_of(self, job: Job) -> Task:
        """Return the clips that a job is about."""
        return self.task(job.variant, job.frames, BACKBONES[job.backbone].size)

    def _task(self, variant: str, frames: int, size: int) -> Task:
        photographs = load_photographs(self.sources.photographs, self.sources.device)
        return load_task(variant, photographs, clips=CLIPS, frames=frames, size=size, device=self.sources.device)

    def _image_model(self, backbone: str) -> nn.Module:
        model = load_backbone(backbone, self.sources.weights, BACKBONES[backbone].size)
        return model.to(self.sources.device)

    def _features(self, job: Job) -> tuple[Tensor, Tensor]:
        task, normalize = self.task_of(job), _reading(job)
        model = copy.deepcopy(self.image_model(job.backbone))
        train, test = (
            cached_features(model, part.frames, normalize=normalize, tokens=job.way == "attentive")
            for part in (task.train, task.test)
        )
        return train, test


def _reading(job: Job) -> Callable[[Tensor], Tensor]:
    return functools.partial(normalized, backbone=BACKBONES[job.backbone])


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
