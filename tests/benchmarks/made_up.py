"""Results made up for tests, in which all that is claimed holds; none was measured."""

from __future__ import annotations

from benchmarks.motion.experiments import CLIPS, EXPERIMENTS, SEEDS, Job
from benchmarks.motion.judging import kind_of
from benchmarks.motion.results import ClassScore, Costs, Results, Run

ORDER = {
    "frozen": 20.0, "spatial": 45.0, "full": 45.0, "temporal": 70.0, "joint": 78.0, "input": 84.0,
    "full-space-time": 70.0, "conv": 85.0, "conv-alone": 80.0, "both": 86.0, "third": 77.5, "linear": 45.0,
    "lora": 45.0, "lora-temporal": 65.0, "probe": 20.0, "attentive": 50.0, "average": 82.0, "alternate": 78.0,
    "top": 77.5, "bottom": 65.0, "ratio-0.0625": 73.0, "random": 20.0, "rate-0.0003": 60.0,
}  # fmt: skip
APPEARANCE = {
    "frozen": 80.0, "spatial": 87.0, "full": 87.0, "temporal": 90.0, "joint": 92.0, "full-space-time": 91.0,
    "third": 91.5, "linear": 87.0, "lora": 87.0, "lora-temporal": 88.0, "probe": 80.0, "attentive": 85.0,
    "average": 95.0, "bottom": 80.0, "ratio-0.0625": 88.0, "random": 30.0,
}  # fmt: skip
CLASSES = {"pan left": 0.0, "pan right": 0.0, "pan right, zoom in": 0.0, "zoom in, then out": 20.0}
LAST = {"gpu": "Some GPU", "commit": "abc"}


def accuracy(job: Job, seed: int) -> float:
    """Return what a run comes to: a little more with each seed."""
    if job.variant == "appearance":
        base = APPEARANCE.get(job.way, 92.0)
    else:
        base = ORDER.get(job.name, 55.0 if job.experiment == "defaults" else 78.0)
    base += {8: 0.0, 16: 4.0, 32: 8.0}[job.frames]
    base += 2.0 * (job.experiment == "longer")
    if job.experiment == "data":
        base -= (60.0 if job.way == "full-space-time" else 50.0) * (1 - job.clips / CLIPS)
    return round(base + 0.25 * seed, 2)


def made_up() -> Results:
    """Return a row for every run of every experiment."""
    jobs = [job for jobs in EXPERIMENTS.values() for job in jobs]
    runs = [
        Run(
            job.experiment, job.variant, job.name, job.backbone, seed, job.frames, job.clips, job.steps, job.batch,
            job.learning_rate, accuracy(job, seed), 95.0, 70.0, seconds=20.0, **LAST,
        )
        for job in jobs for seed in job.seeds
    ]  # fmt: skip
    # Full fine-tuning is ahead on pairs alone, and so is what AIM gains over spatial adapters.
    classes = [
        ClassScore("order", way, seed, name, ORDER[way] + 0.25 * seed + tilt * (kind_of(name) == "classes in pairs"))
        for way, tilt in (("spatial", -30.0), ("joint", -5.0), ("conv", 0.0), ("full", -30.0), ("full-space-time", 10))
        for seed in SEEDS for name in CLASSES
    ]  # fmt: skip
    costs = [
        Costs(way, "dinov2-small", 2.7e6, 24e6, 30.0, 2048.0, 9.0, 10240.0, **LAST)
        for way in dict.fromkeys(job.way for job in jobs)
    ]
    changes = {
        "full-space-time": {"trained": 24e6, "step_ms": 60.0, "peak_mib": 4096.0},
        "top": {"step_ms": 20.0, "peak_mib": 1024.0}, "conv": {"step_ms": 20.0},
        "linear": {"inference_ms": 6.0}, "frozen": {"inference_ms": 6.0},
    }  # fmt: skip
    return Results(tuple(runs), tuple(classes), tuple(row._replace(**changes.get(row.way, {})) for row in costs))
