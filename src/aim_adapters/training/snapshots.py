"""The checkpoints of a run: what trains, and all that is needed to go on as if nothing had happened.

A checkpoint is a folder ``step-N``. It is written beside its place and renamed when all of it is on disk, so a folder
of this name is whole. Tensors are safetensors, all else is JSON. Random numbers are no part of it: they are drawn anew
for each step from the seed of the run, so where a run stands is its number of steps.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aim_adapters.arguments import require_path
from aim_adapters.checkpoint import load_adapters, save_adapters
from aim_adapters.clip_spec import ClipFacts
from aim_adapters.core import is_wrapped
from aim_adapters.errors import CheckpointError, ConfigError
from aim_adapters.storage import CONFIG_NAME, explained_writing, write_weights

FORMAT = 1
_STATE, _OPTIMIZER = "state.json", "optimizer.safetensors"
_AVERAGE, _WEIGHTS = "average.safetensors", "trained.safetensors"
_NAME = re.compile(r"step-(\d+)")


class Standing(NamedTuple):
    """Where a run stands.

    Attributes:
        step: Steps that were taken.
        settings: Settings of the run, as JSON holds them.
        history: What was measured: a record for each step and for each evaluation.
        best: Best accuracy so far, or None.
        scale: State of the gradient scaler, or empty.
    """

    step: int
    settings: dict[str, Any]
    history: list[dict[str, Any]]
    best: float | None
    scale: dict[str, Any]


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what trains, by name.

    Args:
        model: A model, before it is distributed.
    """
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors whole and on the CPU; of sharded ones every process has to ask.

    Args:
        tensors: Tensors by name.
    """
    whole = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        whole[name] = full.detach().cpu().contiguous().clone()
    return whole


def write_snapshot(
    folder: Path,
    model: nn.Module,
    *,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: Mapping[str, Tensor] | None,
    standing: Standing,
    first: bool,
    sharded: bool,
    keep: int,
) -> None:
    """Write a checkpoint; of a sharded model every process has to call.

    Args:
        folder: Folder of the run's checkpoints.
        model: The model.
        parameters: What trains, by name.
        optimizer: The optimizer.
        average: Averaged weights by name, or None.
        standing: Where the run stands.
        first: Whether this is the process that writes.
        sharded: Whether weights are sharded.
        keep: How many checkpoints stay.
    """
    if not first and not sharded:
        return
    place, part = folder / f"step-{standing.step:07d}", folder / f".part-{standing.step}"
    states = gathered(_flat(optimizer, parameters))
    averages = None if average is None else gathered(average)
    if first:
        for left in folder.glob(".part-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir(parents=True)
    save_weights(part, model, parameters, first=first, sharded=sharded)
    if not first:
        return
    save_file(states, part / _OPTIMIZER)
    if averages is not None:
        save_file(averages, part / _AVERAGE)
    (part / _STATE).write_text(json.dumps({"format": FORMAT, **standing._asdict()}), encoding="utf-8")
    for file in part.iterdir():
        _sync(file)
    _sync(part)
    part.rename(place)
    _sync(folder)
    for _, old in sorted(_found(folder))[:-keep]:
        shutil.rmtree(old.rename(folder / f".part-{old.name}"), ignore_errors=True)  # no half of one has its name


def save_weights(
    folder: Path, model: nn.Module, parameters: Mapping[str, nn.Parameter], *, first: bool, sharded: bool
) -> None:
    """Save what trains; of a sharded model every process has to call.

    Args:
        folder: Where to.
        model: The model.
        parameters: What trains, by name.
        first: Whether this is the process that writes.
        sharded: Whether weights are sharded.
    """
    if not first and not sharded:
        return
    if is_wrapped(model):
        save_adapters(model, folder)
        return
    weights = gathered(parameters)
    if first:
        part = folder / f".{_WEIGHTS}"
        with explained_writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_weights(part, weights, weights_metadata(model))
            part.replace(folder / _WEIGHTS)


def weights_metadata(model: nn.Module) -> dict[str, str]:
    """Return what the file with the weights of a model that is not wrapped says about it.

    Args:
        model: The model.
    """
    facts = getattr(model, "clip_facts", None)
    if not isinstance(facts, ClipFacts):
        return {"format": "pt"}
    return {"format": "pt", "baseline": json.dumps({"name": getattr(model, "baseline", None), **facts._asdict()})}


def read_metadata(folder: Path) -> dict[str, str]:
    """Return what the file with the weights of a model that is not wrapped says about it.

    Args:
        folder: Folder that holds it.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        with safe_open(folder / _WEIGHTS, "pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / _WEIGHTS} cannot be read: {error!s:.300}") from error


def latest_snapshot(folder: Path) -> Path | None:
    """Return the last checkpoint of a run, or None.

    Args:
        folder: Folder of the run's checkpoints.
    """
    return max(_found(folder), default=(0, None))[1]


def find_run(out: Path, resume: object) -> tuple[Path | None, Standing | None]:
    """Return the checkpoint to go on from, and where it stands; neither if the run begins.

    Args:
        out: Folder of the run.
        resume: ``"auto"``, a flag, or the path of a checkpoint.

    Raises:
        ConfigError: ``out`` holds what would be overwritten, or no checkpoint though there should be one.
        CheckpointError: The checkpoint cannot be read.
    """
    try:
        latest = found = latest_snapshot(out / "checkpoints")
        holds = (out / CONFIG_NAME).exists()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise ConfigError(f"out is no path of a folder: {error!s:.300}") from error
    if resume is False and found is not None:
        raise ConfigError(f"{out} holds a run, up to {found.name}; pass resume='auto', or choose another out")
    if not isinstance(resume, bool) and not (isinstance(resume, str) and resume == "auto"):
        found = require_path("resume", resume, expected="'auto', True, False or the path of a checkpoint")
        standing = read_standing(found)
        if latest is not None and found.resolve() != latest.resolve():
            raise ConfigError(
                f"{out} holds another checkpoint, {latest.name}, which would be overwritten or taken for this run's; "
                "choose another out, or remove it"
            )
        return found, standing
    if resume is True and found is None:
        raise ConfigError(f"resume=True, but {out} holds no checkpoint; pass resume='auto' to begin")
    if found is None and holds:
        raise ConfigError(f"{out} holds adapters, and no checkpoint of a run; choose another out, or remove them")
    return found, None if found is None else read_standing(found)


def read_standing(snapshot: Path) -> Standing:
    """Return where a checkpoint stands.

    Args:
        snapshot: Folder of the checkpoint.

    Raises:
        CheckpointError: It is none, or of a later version.
    """
    try:
        state = json.loads((snapshot / _STATE).read_text(encoding="utf-8"))
        if state.pop("format") != FORMAT:
            raise CheckpointError(f"{snapshot} was written by a later version; update aim-adapters")
        return Standing(**state)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"cannot resume: {str(snapshot)!r:.300} is no checkpoint of a run (a folder step-N): {error!s:.300}"
        ) from error


def read_weights(snapshot: Path, model: nn.Module) -> None:
    """Read what trains from a checkpoint into a model that is not distributed yet.

    Args:
        snapshot: Folder of the checkpoint.
        model: The model, wrapped as it was.

    Raises:
        CheckpointError: The checkpoint does not fit.
    """
    if is_wrapped(model):
        load_adapters(model, snapshot)
    else:
        targets, weights = trained_parameters(model), _read(snapshot / _WEIGHTS)
        _require_same(targets, weights, snapshot)
        copy_into(targets, weights)


class Saved(NamedTuple):
    """The tensors of a checkpoint beside the weights.

    Attributes:
        optimizer: State of the optimizer by ``parameter/field``.
        average: Averaged weights by name, or None.
    """

    optimizer: dict[str, Tensor]
    average: dict[str, Tensor] | None


def read_saved(snapshot: Path, model: nn.Module, *, averaged: bool) -> Saved:
    """Return the tensors of a checkpoint beside the weights, checked against the model; nothing is changed.

    Args:
        snapshot: Folder of the checkpoint.
        model: The model, wrapped as it was, before it is distributed.
        averaged: Whether there are averaged weights.

    Raises:
        CheckpointError: The checkpoint is incomplete or of another model.
    """
    parameters = trained_parameters(model)
    saved = Saved(_read(snapshot / _OPTIMIZER), _read(snapshot / _AVERAGE) if averaged else None)
    found = {key.rsplit("/", 1)[0]: tensor for key, tensor in saved.optimizer.items() if not key.endswith("/step")}
    # Of a parameter that never had a gradient there is no state.
    _require_same({name: parameters.get(name) for name in found}, found, snapshot)
    if saved.average is not None:
        _require_same(parameters, saved.average, snapshot)
    return saved


def fill_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]
) -> None:
    """Give an optimizer the state that it had.

    Args:
        optimizer: The optimizer.
        parameters: What trains, by name.
        saved: The state by ``parameter/field``.
    """
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for key, value in saved.items():
        name, field = key.rsplit("/", 1)
        parameter = parameters[name]
        if field != "step":
            value = _alike(value, parameter)
        elif fused:
            value = value.to(parameter.device)
        optimizer.state[parameter][field] = value


def copy_into(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into tensors of the same names and shapes, sharded or not.

    Args:
        targets: Tensors by name.
        values: Whole tensors by name.
    """
    with torch.no_grad():
        for name, value in values.items():
            targets[name].copy_(_alike(value, targets[name]))


def _require_same(targets: Mapping[str, Tensor | None], values: Mapping[str, Tensor], where: Path) -> None:
    shapes = {name: None if target is None else target.shape for name, target in targets.items()}
    if shapes != {name: value.shape for name, value in values.items()}:
        raise CheckpointError(f"{where} is of another model; build and wrap the model as it was built for this run")


def _alike(value: Tensor, tensor: Tensor) -> Tensor:
    """Return a whole tensor, placed as another one is."""
    if hasattr(tensor, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(tensor, DTensor)
        return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
    return value.to(tensor.device)


def _flat(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the state of an optimizer as tensors by ``parameter/field``."""
    flat = {}
    for name, parameter in parameters.items():
        for field, value in optimizer.state.get(parameter, {}).items():
            flat[f"{name}/{field}"] = value if isinstance(value, Tensor) else torch.tensor(float(value))
    return flat


def _found(folder: Path) -> Iterable[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    return [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error!s:.300}") from error


def _sync(path: Path) -> None:
    """See to it that a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
