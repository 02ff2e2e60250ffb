"""Training in one call."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from aim_adapters.arguments import read_items, require_flags, require_integer, require_number, require_path, shown
from aim_adapters.clip_spec import ClipSpec, clip_spec, record_clip
from aim_adapters.core import DISTRIBUTED_CLASSES, is_wrapped, only_root, require_saveable
from aim_adapters.errors import ConfigError
from aim_adapters.execution import set_execution
from aim_adapters.recipes import Recipe, get_recipe
from aim_adapters.training.baseline_models import Baseline
from aim_adapters.training.caching import CachedFeed, cached_reader, require_room
from aim_adapters.training.failures import Interruption
from aim_adapters.training.feeding import DummyFeed, Feed, reader_for
from aim_adapters.training.launch import launch, require_agreement, require_writable
from aim_adapters.training.loop import Run
from aim_adapters.training.progress import Progress
from aim_adapters.training.result import FitResult, gradient_bytes
from aim_adapters.training.running import base_dtype, choose_precision, choose_way, own_graphs
from aim_adapters.training.settings import agree_on_labels, decide_settings
from aim_adapters.training.snapshots import find_run, read_saved, read_weights
from aim_adapters.video import Evaluation, VideoDataset, VideoStream, evaluate, parse_views
from aim_adapters.wrapping import set_rates

_SUMMARY = "run.json"


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
    accumulate: int | None = None,
    learning_rate: float | None = None,
    max_norm: float | None = None,
    ema: float | None = None,
    precision: str = "auto",
    execution: str = "auto",
    sharding: str | None = None,
    workers: int | None = None,
    seed: int = 0,
    views: str | None = None,
    evaluate_every: int = 1,
    save_every: int | None = None,
    keep: int = 2,
    max_skipped: float = 0.05,
    dummy_data: bool = False,
    cache_gib: float | None = None,
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
        model: A wrapped model; a baseline (`build_baseline`); or any other module that maps ``[B, T, C, H, W]`` to
            ``[B, K]``, with ``spec``.
        train: Training videos. A transform or stride that they were made with is used; else the recipe says.
        test: Videos to evaluate on, with the same classes.
        out: Folder of the run, on a disk that all processes see.
        recipe: A recipe, or its name in `list_recipes`. Its ``drop_path`` and ``head_dropout`` are applied where the
            model was wrapped with neither.
        epochs: Passes through the data; by default the recipe's.
        resume: ``"auto"``: go on if there is a checkpoint in ``out``, else begin; False: begin, and refuse a folder
            with a run in it; True: go on; or the path of a checkpoint. The settings must be those of the run, but
            ``batch_size``, ``accumulate`` and the number of processes may change if their product does not. A finished
            run is evaluated, and nothing is written.
        batch_size: Clips of one process in one pass through the model; by default the recipe's batch, divided.
        accumulate: Passes in a step; by default as ``accelerate launch`` was told, else one.
        learning_rate: Highest rate of the adapters; by default the recipe's, scaled to the clips in a step.
        max_norm: Clip the gradients to this norm.
        ema: Decay of an exponential moving average of the weights, such as 0.999, which is then evaluated and saved,
            and which the model holds in the end.
        precision: ``"auto"``: bfloat16 on a GPU that has it, float32 on a CPU; or ``"fp32"``, ``"bf16"``, ``"fp16"``,
            ``"fp8"`` (frozen weights in float8). What ``accelerate launch`` was told comes before ``"auto"``.
        execution: ``"auto"``: the fastest that works here, which is said; or ``"eager"``, ``"graphs"`` (CUDA graphs, as
            `aim.graph` has them), ``"blocks"`` (each block compiled) or ``"compiled"`` (the whole model).
        sharding: Over several processes, ``"ddp"``: each holds the whole model; ``"fsdp2"``: each holds a part, and so
            does the model in the end. By default as ``accelerate launch`` was told, else ``"ddp"``.
        workers: Processes that decode, for each process that trains; by default the cores that are left.
        seed: Seed.
        views: Clips in time x crops in space of the last evaluation; by default the recipe's. Others take one view.
        evaluate_every: Epochs between two evaluations; 0: only at the end.
        save_every: Steps between two checkpoints; by default an epoch, but at most 1,000.
        keep: Checkpoints that stay.
        max_skipped: Share of videos that may be missing or broken before training stops.
        dummy_data: Train on random clips made once on the device, which shows the speed without decoding.
        cache_gib: For the baselines ``"probe"`` and ``"attentive-probe"`` on one process: run the image model once for
            each training video, keep what the probe reads on the device, in the type of ``precision`` and in at most so
            many GiB, and train on that. Clips are those of an evaluation, so the recipe's augmentation is left out.
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
    _require_kinds(model, train, test, spec=spec, callbacks=callbacks)
    recipe = get_recipe(recipe)
    parse_views(views := recipe.views if views is None else views)
    folder = require_path("out", out)
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
    if cache_gib is None:
        reader = reader_for(train, recipe, spec)
    else:
        reader = cached_reader(model, train, recipe, spec, dummy_data=dummy_data)
    accelerator, sharding, accumulate, precision = launch(
        sharding=sharding, accumulate=accumulate, precision=precision, log_with=log_with, out=folder
    )
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    settings = decide_settings(
        recipe,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        max_norm=max_norm,
        ema=ema,
        precision=choose_precision(precision, device, base_dtype(model)),
        seed=seed,
        processes=world,
        data=train,
        dummy_data=dummy_data,
        labels=spec.labels or (),
    )
    if cache_gib is not None:
        require_room(model, spec, settings, gib=cache_gib, processes=world)
        settings = dataclasses.replace(settings, cached=True)
    way = choose_way(execution, device=device.type, sharding=sharding, wrapped=is_wrapped(model))
    snapshot, standing = find_run(folder, resume)
    if standing is not None and (differences := settings.differences(standing.settings)):
        raise ConfigError(
            f"{snapshot} is of a run with other settings: {'; '.join(differences)}. Continue with the same settings, "
            "or choose another out"
        )
    saved = None if snapshot is None else read_saved(snapshot, model, averaged=ema is not None)
    facts = {"settings": settings.to_dict(), "the checkpoint to go on from": snapshot and str(snapshot)}
    require_agreement(facts, world=world)
    require_writable(folder)
    # From here on things change.
    if snapshot is not None:
        read_weights(snapshot, model)
    say = Progress(settings.steps, shown=progress and accelerator.is_main_process)
    if is_wrapped(model):
        if settings.precision == "fp8":
            set_execution(model, frozen_precision="fp8")
        set_rates(model, drop_path=recipe.drop_path, head_dropout=recipe.head_dropout)
        record_clip(model, stride=spec.stride, mean=spec.mean, std=spec.std, labels=spec.labels)
    elif isinstance(model, Baseline):
        model.set_spec(spec)
    feed: Feed | DummyFeed | CachedFeed
    if dummy_data:
        feed = DummyFeed(spec, settings, device)
    elif settings.cached:
        feed = CachedFeed(
            model, train.with_reader(reader), settings, spec, workers=workers, device=device, max_skipped=max_skipped,
            progress=say,
        )  # fmt: skip
    else:
        feed = Feed(
            train.with_reader(reader), settings, spec, rank=rank, world=world, workers=workers, device=device,
            max_skipped=max_skipped,
        )  # fmt: skip

    def assess(trained: nn.Module, chosen: str = "1x1") -> Evaluation:
        assert test is not None
        return evaluate(
            trained, test, chosen, spec=spec, workers=workers, batch_size=settings.batch_size, max_skipped=max_skipped,
            # Frozen products in FP8 are the model's own setting.
            precision="bf16" if settings.precision == "fp8" else settings.precision, progress=False,
        )  # fmt: skip

    evaluation = None
    stop = Interruption()
    try:
        with stop.watch(), own_graphs(model):
            run = Run(
                model, accelerator, feed, settings=settings, recipe=recipe, spec=spec, way=way, sharding=sharding,
                out=folder, keep=keep, evaluate=None if test is None else assess, progress=say,
                callbacks=tuple(callbacks),
            )  # fmt: skip
            if saved is not None and standing is not None:
                run.restore(saved, standing)
            begun, first = time.perf_counter(), run.step
            # What is written last is not there if the run was ended after its last step.
            unfinished = run.step < settings.steps or not (folder / _SUMMARY).exists()
            _announce(say, run, snapshot)
            if log_with is not None:
                accelerator.init_trackers("aim-adapters")
            run.train(
                save_every=save_every or min(settings.steps_per_epoch, 1000), evaluate_every=evaluate_every, stop=stop
            )
            run.end(keep=unfinished)
            if test is not None:
                evaluation = assess(model, views)
    finally:
        say.close()
        for tracker in accelerator.trackers:  # not end_training(), which would end the process group too
            tracker.finish()
    model.eval()
    result = FitResult(
        out=folder,
        steps=run.step,
        history=run.history,
        evaluation=evaluation,
        best=run.best,
        seconds=time.perf_counter() - begun if run.step > first else 0.0,
        clips_per_second=say.clips_per_second,
        waiting=say.waiting,
        gradient_bytes=gradient_bytes(model) if world > 1 else 0,
        execution=f"{run.way.name} ({run.way.reason})",
    )
    if accelerator.is_main_process and unfinished:
        if evaluation is not None:
            evaluation.save(folder / "predictions.csv")
        text = json.dumps({"settings": settings.to_dict(), "result": result.to_dict()}, indent=2)
        (folder / _SUMMARY).write_text(text + "\n", encoding="utf-8")
    if stop.signal is not None:  # it came after the last step
        stop.leave()
    return result


def _require_kinds(model: Any, train: Any, test: Any, *, spec: Any, callbacks: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, data in {"train": train, "test": test}.items():
        if not isinstance(data, (VideoDataset, VideoStream)) and (name == "train" or data is not None):
            raise TypeError(f"{name} must be a VideoFolder or another VideoDataset or VideoStream, got {shown(data)}")
    if spec is not None and not isinstance(spec, ClipSpec):
        raise TypeError(f"spec must be a ClipSpec or None, got {shown(spec)}")
    if not all(map(callable, read_items(callbacks, refusal := "callbacks must be a list of functions"))):
        raise ConfigError(f"{refusal}, got {shown(callbacks)}")
    for name, module in model.named_modules():
        if type(module).__name__ in DISTRIBUTED_CLASSES:
            raise ConfigError(
                f"{name or 'the model'} is distributed already ({type(module).__name__}); pass the model itself, fit "
                "distributes it"
            )
    if is_wrapped(model):
        # Said now and not when the first checkpoint is written.
        require_saveable(model, only_root(model))
    elif not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("no parameter of the model requires a gradient")


def _require_fit(recipe: Recipe, model: nn.Module) -> None:
    state = only_root(model).state
    if problems := recipe.check_fits(state.config, state.anatomy):
        settings = ", ".join(f"{name}={value!r}" for name, value in recipe.wrap_settings().items())
        raise ConfigError(
            f"the recipe {recipe.name!r} does not fit this model: {'; '.join(problems)}. Wrap the model that it is for "
            f"with aim.wrap_image_model(model, {settings}), or train with recipe='small-data'"
        )


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
    if is_wrapped(run.model):
        config = only_root(run.model).state.config
        say.say(f"drop_path={config.drop_path}, head_dropout={config.head_dropout}")
    say.say(f"{trains:,} parameters train {where} in {settings.precision}, {run.way.name}: {run.way.reason}")
