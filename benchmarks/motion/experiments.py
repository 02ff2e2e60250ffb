"""The experiments: which ways train on what, with which settings, as a list of jobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.motion.ways import rate_of

RATES_SEED = 3  # of the experiment "rates", which chooses for all others
SEEDS = (0, 1, 2, 4, 5)
FEW_SEEDS = SEEDS[:3]  # where less is to be decided, or a run takes long
VARIANTS = ("order", "appearance")
CLIPS, BATCH, FRAMES = 8208, 48, 8
STEPS = {"order": 700, "composition": 1400, "appearance": 250}
SHARES = (0.01, 0.05, 0.25)  # of the clips; Figure 3

# Most of those that see time, with twice the steps.
LONGER = (
    "temporal", "joint", "input", "full-space-time", "conv", "conv-alone", "both", "third", "lora-temporal", "average",
    "alternate", "top", "bottom", "ratio-0.0625", "ratio-0.5",
)  # fmt: skip
LADDER = ("frozen", "spatial", "temporal", "joint", "input", "full", "full-space-time")
WAYS = ("conv", "conv-alone", "both", "third", "linear", "lora", "lora-temporal", "probe", "attentive", "average")
# What is trained otherwise costs the same, step by step.
COSTS_AS = dict.fromkeys(("average", "resized", "random", "graphs", "eager"), "joint")

# Learning rates that are tried before all else, with a seed of its own, by image model and variant.
DINOV2_TRIED = {
    "frozen": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "joint": (1e-4, 3e-4, 1e-3),
    "conv": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    "lora-temporal": (3e-4, 1e-3, 3e-3),
    "probe": (3e-3, 1e-2, 3e-2),
    "attentive": (3e-4, 1e-3, 3e-3),
    "full-space-time": (3e-6, 1e-5, 3e-5, 1e-4),
}
TRIED: dict[str, dict[str, dict[str, tuple[float, ...]]]] = {
    "dinov2-small": dict.fromkeys(VARIANTS, DINOV2_TRIED),
    "clip-base": {
        "order": {"joint": (1e-4, 3e-4, 1e-3), "conv": (1e-4, 3e-4, 1e-3, 3e-3), "full-space-time": (1e-5, 3e-5, 1e-4)},
        "appearance": {"joint": (1e-4, 3e-4), "full-space-time": (1e-5, 3e-5, 1e-4)},
    },
}
# With the seeds of CLIP's other runs: the rate that was ahead with one seed, and one that is DINOv2's and too high.
CLIP_RATES = {("spatial", "order"): 1e-3, ("joint", "order"): 1e-3, ("conv", "appearance"): 3e-3}


class Job(NamedTuple):
    """One way with one setting, for several seeds that train side by side.

    Attributes:
        experiment: Name of the experiment.
        variant: Of the task.
        way: Name of the way.
        seeds: Of what is new and of the order of the clips.
        backbone: Name of the image model.
        frames: Frames of a clip T.
        clips: Clips that are trained on.
        steps: Steps of the optimizer.
        batch: Clips of a step.
        rate: Learning rate; None: that of the way.
        plan: Further settings of `Plan`.
        options: Further settings of `wrap_image_model`.
        label: Name of the way in the results, where settings differ from it.
    """

    experiment: str
    variant: str
    way: str
    seeds: tuple[int, ...] = SEEDS
    backbone: str = "dinov2-small"
    frames: int = FRAMES
    clips: int = CLIPS
    steps: int = STEPS["order"]
    batch: int = BATCH
    rate: float | None = None
    plan: tuple[tuple[str, Any], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    label: str = ""

    @property
    def name(self) -> str:
        """Return the name of the way in the results."""
        return self.label or self.way

    @property
    def learning_rate(self) -> float:
        """Return its learning rate."""
        return rate_of(self.way, self.variant, self.backbone) if self.rate is None else self.rate

    def key(self, seed: int) -> tuple[Any, ...]:
        """Return what tells its run with a seed from other runs."""
        return (self.experiment, self.variant, self.name, self.backbone, seed, self.frames, self.clips)


def _everywhere(experiment: str, *ways: str) -> Iterator[Job]:
    for way in ways:
        for variant in VARIANTS:
            yield Job(experiment, variant, way, steps=STEPS[variant])


def _rates() -> Iterator[Job]:
    for backbone, variants in TRIED.items():
        for variant, ways in variants.items():
            for way, rates in ways.items():
                usual = Job("rates", variant, way, (RATES_SEED,), backbone, steps=STEPS[variant])
                yield from (_at(usual, rate) for rate in rates)


def _at(job: Job, rate: float) -> Job:
    """Return a job with another learning rate, by the name of which it goes."""
    return job._replace(rate=rate, label=f"{job.way} {rate:g}")


def way_and_rate(name: str) -> tuple[str, str]:
    """Return the way that a name in the results is of, and the learning rate in it, or ""."""
    way, _, rate = name.partition(" ")
    return way, rate


def _composition() -> Iterator[Job]:
    for way in ("spatial", "joint", "conv", "full-space-time"):
        yield Job("composition", "composition", way, steps=STEPS["composition"])


def _backbones() -> Iterator[Job]:
    for way in ("spatial", "joint", "conv", "full-space-time"):
        for variant in VARIANTS:
            job = Job("backbones", variant, way, FEW_SEEDS, backbone="clip-base", steps=STEPS[variant])
            yield job
            if (way, variant) in CLIP_RATES:
                yield _at(job, CLIP_RATES[way, variant])


def _data() -> Iterator[Job]:
    for share in SHARES:
        for way in ("joint", "conv", "full-space-time"):
            yield Job("data", "order", way, FEW_SEEDS, clips=_part(share))


def _part(share: float) -> int:
    """Return how many clips a share of them is, whole scenes of "order"."""
    return 12 * round(share * CLIPS / 12)


def _frames() -> Iterator[Job]:
    for frames in (16, 32):
        yield Job("frames", "order", "joint", frames=frames)
    yield Job("frames", "order", "resized")


def _execution() -> Iterator[Job]:
    yield from _everywhere("execution", "balanced", "low", "fp8", "modules", "graphs")
    for job in _everywhere("execution", "joint"):
        yield job._replace(plan=(("record", False),), label="eager")


def _defaults() -> Iterator[Job]:
    clips, batch = _part(1 / 8), 12
    epoch = clips // batch
    usual = Job("defaults", "order", "joint", FEW_SEEDS, clips=clips, batch=batch, steps=20 * epoch)
    for variant in VARIANTS:
        for rate in (1e-4, 3e-4, 1e-3, 3e-3):
            yield usual._replace(variant=variant, rate=rate, label=f"rate-{rate:g}")
    for warmup in (0.0, 0.3):
        yield usual._replace(plan=(("warmup", warmup),), label=f"warmup-{warmup:g}")
    for drop in (0.1, 0.2):
        yield usual._replace(options=(("drop_path", drop),), label=f"drop-path-{drop:g}")
    yield usual._replace(plan=(("ema", 0.99),), label="ema-0.99")
    for epochs in (10, 40):
        yield usual._replace(steps=epochs * epoch, label=f"epochs-{epochs}")


EXPERIMENTS: dict[str, tuple[Job, ...]] = {
    "rates": tuple(_rates()),
    "ladder": tuple(_everywhere("ladder", *LADDER)),
    "ways": tuple(_everywhere("ways", *WAYS)),
    "longer": tuple(Job("longer", "order", way, steps=2 * STEPS["order"]) for way in LONGER),
    "composition": tuple(_composition()),
    "layers": tuple(_everywhere("layers", "alternate", "top", "bottom")),
    "ratio": tuple(_everywhere("ratio", "ratio-0.0625", "ratio-0.125", "ratio-0.5")),
    "pretraining": (
        Job("pretraining", "order", "random"),
        Job("pretraining", "appearance", "random", steps=STEPS["appearance"]),
    ),
    "data": tuple(_data()),
    "frames": tuple(_frames()),
    "backbones": tuple(_backbones()),
    "execution": tuple(_execution()),
    "defaults": tuple(_defaults()),
}
