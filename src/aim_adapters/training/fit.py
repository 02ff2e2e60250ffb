"""Training in one call."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from aim_adapters.arguments import require_choice, require_flags, require_integer, require_number, require_path, shown
from aim_adapters.clip_spec import ClipSpec, clip_spec, record_clip
from aim_adapters.core import is_wrapped, only_root
from aim_adapters.errors import ConfigError
from aim_adapters.execution import set_execution
from aim_adapters.recipes import Recipe, get_recipe
from aim_adapters.training.failures import Interruption
from aim_adapters.training.feeding import DummyFeed, Feed, reader_for
from aim_adapters.training.loop import Run
from aim_adapters.training.progress import Progress
from aim_adapters.training.running import choose_precision, choose_way
from aim_adapters.training.settings import agree_on_labels, decide_settings
from aim_adapters.training.snapshots import latest_snapshot, read_standing, read_weights
from aim_adapters.video import Evaluation, VideoDataset, VideoStream, evaluate, parse_views
from aim_adapters.wrapping import set_rates

SHARDINGS = ("ddp", "fsdp2")
_TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass(frozen=True)
class FitResult:
    """What came out of a run.

    Args:
        out: Folder of the run: the adapters, ``best/``, ``checkpoints/``.
        steps: Steps that the run has taken in all.
        history: A record for each step (``step``, ``epoch``, ``loss``, ``lr``) and each evaluation (``top1``).
        evaluation: The evaluation at the end, or None if there is no test set.
        best: Best accuracy of all evaluations, in [0, 1], or None.
        seconds: How long this call trained.
        clips_per_second: Clips of all processes in a second, over the last steps.
        waiting: Share of that time which waited for data.
        gradient_bytes: Bytes of gradients that each process sends for a step; 0 for one process.
        execution: How steps ran, and why.
    """

    out: Path
    steps: int
    history: list[dict[str, Any]]
    evaluation: Evaluation | None
    best: float | None
    seconds: float
    clips_per_second: float
    waiting: float
    gradient_bytes: int
    execution: str

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        return [record["loss"] for record in self.history if "loss" in record]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values, without the history."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {"out": str(self.out), "last_loss": self.losses[-1] if self.losses else None}
        fields["evaluation"] = None if self.evaluation is None else self.evaluation.to_dict()
        del fields["history"]
        return fields

    def __str__(self) -> str:
        """Return a summary."""
        lines = [f"{self.steps} steps; adapters in {self.out}"]
        if self.seconds:
            waiting = f"{self.waiting:.0%} of the time waiting for data"
            lines.append(f"{self.clips_per_second:,.1f} clips/s, {waiting}; ran {self.execution}")
        if self.evaluation is not None:
            lines.append(str(self.evaluation))
        return "\n".join(lines)


def fit(
    model: nn.Module,
    train: VideoDataset | VideoStream,
    test: VideoDataset | VideoStream | None = None,
    *,
    out: str | os.PathLike[str],
    recipe: str | Recipe = "small-data",
    epochs: int | None = None,
    resume: Literal["auto"] | bool | str | os.PathLike[str] = "auto",
    batch_size: int | None = None,
    accumulate: int = 1,
    learning_rate: float | None = None,
    max_norm: float | None = None,
    ema: float | None = None,
    precision: str = "auto",
    execution: str = "auto",
    sharding: str = "ddp",
    workers: int | None = None,
    seed: int = 0,
    views: str | None = None,
    evaluate_every: int = 1,
    save_every: int | None = None,
    keep: int = 2,
    max_skipped: float = 0.05,
    dummy_data: bool = False,
    log_with: str | None = None,
    callbacks: Sequence[Callable[[dict[str, Any]], None]] = (),
    spec: ClipSpec | None = None,
    progress: bool = True,
) -> FitResult:
    """Train a wrapped model on videos: recipe, decoding, checkpoints, evaluation.

    In a script that ``accelerate launch`` or ``torchrun`` starts once for each device, all of them train together. What
    is drawn at random depends on ``seed`` alone: not on the number of workers, nor on where a run was interrupted. With
    the same total batch, one process and several draw the same clips.

    ``out`` gets the adapters (`load_video_model` reads them), those with the best accuracy in ``best``, and
    checkpoints. A run that was interrupted, also by SIGTERM or in mid-epoch, goes on where its last checkpoint is.

    Args:
        model: A wrapped model; or a baseline, any module that maps ``[B, T, C, H, W]`` to ``[B, K]``, with ``spec``.
        train: Training videos. A transform or stride that they were made with is used; else the recipe says.
        test: Videos to evaluate on, with the same classes.
        out: Folder of the run.
        recipe: A recipe, or its name in `list_recipes`. Its ``drop_path`` and ``head_dropout`` are applied where the
            model was wrapped with neither.
        epochs: Passes through the data; by default the recipe's.
        resume: ``"auto"``: go on if there is a checkpoint in ``out``, else begin; False: begin, and refuse a folder
            with a run in it; True: go on; or the path of a checkpoint.
        batch_size: Clips of one process in one pass through the model; by default the recipe's batch, divided.
        accumulate: Passes in a step.
        learning_rate: Highest rate of the adapters; by default the recipe's, scaled to the clips in a step.
        max_norm: Clip the gradients to this norm.
        ema: Decay of an exponential moving average of the weights, such as 0.999, which is then evaluated and saved.
        precision: ``"auto"``: bfloat16 on a GPU that has it, float32 on a CPU; or ``"fp32"``, ``"bf16"``, ``"fp16"``,
            ``"fp8"`` (frozen weights in float8).
        execution: ``"auto"``: the fastest that works here, which is said; or ``"eager"``, ``"blocks"``, ``"graphs"``.
        sharding: Over several processes, ``"ddp"``: each holds the whole model; ``"fsdp2"``: each holds a part.
        workers: Processes that decode, for each process that trains; by default the cores that are left.
        seed: Seed.
        views: Clips in time x crops in space of the last evaluation; by default the recipe's. Others take one view.
        evaluate_every: Epochs between two evaluations; 0: only at the end.
        save_every: Steps between two checkpoints; by default an epoch, but at most 1,000.
        keep: Checkpoints that stay.
        max_skipped: Share of videos that may be missing or broken before training stops.
        dummy_data: Train on random clips made once on the device, which shows the speed without decoding.
        log_with: ``"tensorboard"``, ``"wandb"`` or ``"trackio"``.
        callbacks: Functions that are called with the record of each step.
        spec: What the model reads, if it does not say so itself.
        progress: Show what happens on standard error.

    Returns:
        What came out.

    Raises:
        TypeError: ``model`` is no module, or the data is of another kind.
        ConfigError: A setting is invalid; the recipe does not fit the model; the classes of model and data differ; or
            ``out`` holds another run. Nothing was written or changed.
        CheckpointError: A checkpoint cannot be read.
        VideoError: Too many videos cannot be read.
        TrainingError: A loss is not finite, or memory ran out.
        ImportError: accelerate is not installed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, data in {"train": train, "test": test}.items():
        if not isinstance(data, (VideoDataset, VideoStream)) and (name == "train" or data is not None):
            raise TypeError(f"{name} must be a VideoFolder or another VideoDataset or VideoStream, got {shown(data)}")
    recipe = get_recipe(recipe)
    parse_views(views := views or recipe.views)
    folder = require_path("out", out)
    require_choice("sharding", sharding, SHARDINGS)
    require_flags(dummy_data=dummy_data, progress=progress)
    evaluate_every = require_integer("evaluate_every", evaluate_every, low=0)
    keep = require_integer("keep", keep, low=1)
    if save_every is not None:
        save_every = require_integer("save_every", save_every, low=1)
    max_skipped = require_number("max_skipped", max_skipped, low=0.0)
    if workers is not None:
        workers = require_integer("workers", workers, low=0, high=1024)
    if spec is None:
        spec = clip_spec(model)
    spec = dataclasses.replace(spec, labels=agree_on_labels(spec, train, test))
    if is_wrapped(model):
        _require_fit(recipe, model)
        # The recipe's distance between frames, unless the dataset was made with one, or a trained model has its own.
        spec = dataclasses.replace(spec, stride=train.reader.stride or spec.stride or recipe.stride)
    data = train.with_reader(reader_for(train, recipe, spec))
    accelerator = _accelerator(log_with, folder)
    device = accelerator.device
    settings = decide_settings(
        recipe,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        max_norm=max_norm,
        ema=ema,
        precision=choose_precision(precision, device),
        seed=seed,
        processes=accelerator.num_processes,
        videos=_length(train),
        labels=spec.labels or (),
    )
    way = choose_way(
        execution,
        device=device.type,
        triton=_has_triton(),
        steps=settings.steps,
        sharding=sharding,
        wrapped=is_wrapped(model),
        ragged=settings.videos < settings.total_batch,
    )
    snapshot, standing = _found_run(folder, resume)
    if standing is not None and (differences := settings.differences(standing.settings)):
        raise ConfigError(
            f"{snapshot} is of a run with other settings: {'; '.join(differences)}. Continue with the same settings, "
            "or choose another out"
        )
    # From here on things change.
    say = Progress(settings.steps, shown=progress and accelerator.is_main_process)
    if is_wrapped(model):
        set_rates(model, drop_path=recipe.drop_path, head_dropout=recipe.head_dropout)
        record_clip(model, stride=spec.stride, mean=spec.mean, std=spec.std, labels=spec.labels)
        if settings.precision == "fp8":
            set_execution(model, frozen_precision="fp8")
    if snapshot is not None:
        read_weights(snapshot, model)
    feed: Feed | DummyFeed
    if dummy_data:
        feed = DummyFeed(spec, settings, device)
    else:
        rank, world = accelerator.process_index, accelerator.num_processes
        feed = Feed(data, settings, rank=rank, world=world, workers=workers, device=device, max_skipped=max_skipped)

    def assess(trained: nn.Module, chosen: str = "1x1") -> Evaluation:
        assert test is not None
        return evaluate(
            trained, test, chosen, spec=spec, workers=workers, batch_size=settings.batch_size,
            precision=settings.precision, max_skipped=max_skipped, progress=False,
        )  # fmt: skip

    run = Run(
        model, accelerator, feed, settings=settings, recipe=recipe, spec=spec, way=way, sharding=sharding, out=folder,
        keep=keep, evaluate=None if test is None else assess, progress=say, callbacks=tuple(callbacks),
    )  # fmt: skip
    if snapshot is not None and standing is not None:
        run.restore(snapshot, standing)
    begun, first = time.perf_counter(), run.step
    _announce(say, run, snapshot)
    try:
        with Interruption().watch() as stop:
            run.train(
                save_every=save_every or min(settings.steps_per_epoch, 1000), evaluate_every=evaluate_every, stop=stop
            )
        if run.step > first:
            run.save()
        with run.weights_to_keep():
            run.keep_weights(folder)
            if test is not None:
                run.evaluation = assess(model, views)
    finally:
        say.close()
        for tracker in accelerator.trackers:  # not end_training(), which would end the process group too
            tracker.finish()
    model.eval()
    result = FitResult(
        out=folder,
        steps=run.step,
        history=run.history,
        evaluation=run.evaluation,
        best=run.best,
        seconds=time.perf_counter() - begun if run.step > first else 0.0,
        clips_per_second=say.clips_per_second,
        waiting=say.waiting,
        gradient_bytes=gradient_bytes(model) if accelerator.num_processes > 1 else 0,
        execution=f"{run.way.name} ({run.way.reason})",
    )
    if accelerator.is_main_process:
        text = json.dumps({"settings": settings.to_dict(), "result": result.to_dict()}, indent=2)
        (folder / "run.json").write_text(text + "\n", encoding="utf-8")
    return result


def gradient_bytes(model: nn.Module) -> int:
    """Return the bytes of gradients that a process sends for each step: those of what trains, and nothing else.

    Args:
        model: A wrapped model, or a baseline.
    """
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def _require_fit(recipe: Recipe, model: nn.Module) -> None:
    state = only_root(model).state
    if problems := recipe.check_fits(state.config, state.anatomy):
        settings = ", ".join(f"{name}={value!r}" for name, value in recipe.wrap_settings().items())
        raise ConfigError(
            f"the recipe {recipe.name!r} does not fit this model: {'; '.join(problems)}. Wrap the model that it is for "
            f"with aim.wrap_image_model(model, {settings}), or train with recipe='small-data'"
        )


def _length(data: Any) -> int:
    try:
        length = len(data)
    except TypeError as error:
        raise ConfigError(f"the learning rate needs to know how many clips there are: {error}") from error
    if not length:
        raise ConfigError("train holds no videos")
    return length


def _found_run(folder: Path, resume: object) -> tuple[Path | None, Any]:
    """Return the checkpoint to go on from, and where it stands; neither if the run begins."""
    found = latest_snapshot(folder / "checkpoints")
    if resume is False:
        if found is not None:
            raise ConfigError(f"{folder} holds a run, up to {found.name}; pass resume='auto', or choose another out")
        return None, None
    if not isinstance(resume, bool) and resume != "auto":
        found = require_path("resume", resume, expected="'auto', True, False or the path of a checkpoint")
    elif resume is True and found is None:
        raise ConfigError(f"resume=True, but {folder} holds no checkpoint; pass resume='auto' to begin")
    return found, None if found is None else read_standing(found)


def _accelerator(log_with: str | None, folder: Path) -> Any:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ImportError("fit needs accelerate; install aim-adapters[train]") from error
    if log_with is None:
        return Accelerator()
    require_choice("log_with", log_with, _TRACKERS)
    try:
        accelerator = Accelerator(log_with=log_with, project_dir=folder)
        accelerator.init_trackers("aim-adapters")
    except (ImportError, ValueError) as error:
        raise ImportError(f"log_with={log_with!r} needs the package of this name: {error}") from error
    return accelerator


def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return bool(torch.cuda.is_available() and has_triton())


def _announce(say: Progress, run: Run, snapshot: Path | None) -> None:
    settings, trains = run.settings, sum(p.numel() for p in run.parameters.values())
    where = f"on {run.world} x {run.device.type}" if run.world > 1 else f"on {run.device.type}"
    start = f"goes on from {snapshot}" if snapshot is not None else "begins"
    if run.step >= settings.steps:
        say.say(f"{run.out} is finished: {run.step} steps")
        return
    say.say(
        f"{settings.recipe}: {start}; {settings.videos:,} videos, {settings.epochs} epochs of "
        f"{settings.steps_per_epoch} steps of {settings.total_batch} clips, learning rate {settings.learning_rate:.3g}"
    )
    say.say(f"{trains:,} parameters train {where} in {settings.precision}, {run.way.name}: {run.way.reason}")
