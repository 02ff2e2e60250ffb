"""Save and load what was trained, and nothing else: strict, and all or nothing."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aim_adapters.adapters import build_beside, list_adapters, require_name, shelve, state_of, tensors_of
from aim_adapters.agreement import require_reasonable, require_same_base, require_same_meaning
from aim_adapters.backbones import read_anatomy
from aim_adapters.card import write_card
from aim_adapters.config import AIMConfig
from aim_adapters.errors import CheckpointError, ConfigError, UnsupportedKernelError, warn
from aim_adapters.files import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME, WeightsFile, replace_text, write_weights
from aim_adapters.format import open_checkpoint, settings_of
from aim_adapters.frames import resize_temporal
from aim_adapters.guards import is_wrapped, only_root, require_memory, require_wrappable
from aim_adapters.layers.state import AdapterSet
from aim_adapters.layers.temporal import is_temporal
from aim_adapters.ops.temporal_attention import choose
from aim_adapters.plan import build_adapter, fill_adapter, root_state
from aim_adapters.root import RootState
from aim_adapters.snapshot import require_labels, take_snapshot
from aim_adapters.sources import locate
from aim_adapters.state_dict import (
    LoadReport,
    compare,
    copy_tensors,
    fitting,
)
from aim_adapters.wrapping import DEFAULT_NAME, make_record, wrap_with_adapter


def save_adapters(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    name: str | None = None,
    base_model_name_or_path: str | None = None,
    base_model_revision: str | None = None,
    frame_stride: int | None = None,
    labels: Sequence[str] | None = None,
) -> Path:
    """Write one adapter, its config and a short card into a directory; nothing of the image model.

    Each file is replaced atomically; the weights come last and carry the whole config in their header, so that a save
    that is interrupted, even killed, leaves the old checkpoint or the new one. A ``README.md`` that exists is brought
    up to date if it holds the section that a save or push wrote, and else left alone. With FSDP2 every rank must call,
    and rank 0 writes.

    Args:
        model: A wrapped model.
        directory: Made if it does not exist.
        name: Which adapter, of several; by default the one that runs.
        base_model_name_or_path: Name of the base model; by default the one its library knows.
        base_model_revision: Revision of the base model's weights.
        frame_stride: Frames from one sampled frame to the next, for whoever makes clips later.
        labels: Names of the classes in the order of the outputs.

    Returns:
        The directory.

    Raises:
        StateError: The model is not wrapped, holds several wrapped models, or has no weights (meta device).
        CheckpointError: ``directory`` is a file.
        ConfigError: There is no adapter of this name; ``labels`` is a string, or does not have as many names as the
            adapter has classes; or ``frame_stride`` is no number of frames.
    """
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file; save_adapters expects a directory")
    snapshot = take_snapshot(
        model,
        name=name,
        base_model_name_or_path=base_model_name_or_path,
        base_model_revision=base_model_revision,
        frame_stride=frame_stride,
        labels=labels,
    )
    if snapshot is None:
        return path
    path.mkdir(parents=True, exist_ok=True)
    write_card(path / CARD_NAME, snapshot.config, parameters=snapshot.parameters)
    replace_text(path / CONFIG_NAME, snapshot.config_text())
    write_weights(path / WEIGHTS_NAME, snapshot.state, snapshot.metadata())
    return path


def read_config(directory: Path) -> dict[str, Any]:
    """Read what a checkpoint says of itself.

    Args:
        directory: Where its files are.

    Raises:
        CheckpointError: They are missing, damaged or foreign.
    """
    with open_checkpoint(directory) as (config, _):
        return config


def load_adapters(
    model: nn.Module,
    source: str | os.PathLike[str],
    strict: bool = True,
    *,
    name: str | None = None,
    resize_frames: bool = False,
    allow_nonfinite: bool = False,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> LoadReport:
    """Load an adapter that `save_adapters` or `push_to_hub` wrote.

    A model that is not wrapped yet is wrapped as the checkpoint says. On any error the model is as it was.

    Args:
        model: The base model, wrapped with the checkpoint's settings or not wrapped.
        source: The directory, or the id of a repository on the Hugging Face Hub: ``"user/repo"``.
        strict: Refuse whatever differs: a base of another name, other settings, missing or extra tensors, unknown keys
            in the config. Otherwise load what fits, warn about settings and report the rest. A base of other shapes is
            always refused.
        name: Into which adapter, of several; by default the one that runs. A name that the model does not have yet
            adds an adapter with the checkpoint's settings beside the others; `set_adapter` makes it run.
        resize_frames: Let a wrapped model with another number of frames take the checkpoint: its temporal embedding
            or biases are interpolated linearly, which a warning says.
        allow_nonfinite: Load NaN and infinities too.
        revision: Branch, tag or commit on the Hub.
        subfolder: Folder below the directory or repository.
        token: Token for the Hub; by default the one you are logged in with.
        cache_dir: Where downloads are kept; by default where the Hub's own tools keep them.
        local_files_only: Use what was downloaded before, and no network.
        force_download: Download again what was downloaded before.

    Raises:
        CheckpointError: The files cannot be had, are missing, damaged or foreign, hold NaN or infinities, or do not
            fit the model.
        ConfigError: ``name`` cannot be the name of an adapter.
        UnsupportedModelError: The model is not wrapped and cannot be adapted.
        StateError: The model holds several wrapped models, has no weights (meta device), or is compiled, sharded or
            distributed where an adapter has to be added.
    """
    wrapped = is_wrapped(model)
    added = not wrapped or (name is not None and name not in list_adapters(model))
    if not wrapped:
        require_wrappable(model)
    if added and name is not None:
        require_name(name)
    directory = locate(
        source,
        revision=revision,
        subfolder=subfolder,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    with open_checkpoint(directory, strict=strict) as (config, file):
        settings = settings_of(config, directory)
        reader = _Reader(file, allow_nonfinite=allow_nonfinite)
        if added:
            report = _load_new(model, config, settings, reader, name=name, strict=strict)
        else:
            report = _load_existing(
                model, config, settings, reader, name=name, strict=strict, resize_frames=resize_frames
            )
    return report


class _Reader:
    """Read tensors, refusing what is not finite, and notice adapters that were never trained."""

    def __init__(self, file: WeightsFile, *, allow_nonfinite: bool) -> None:
        self.path, self.shapes, self._file, self._allow_nonfinite = file.path, file.shapes, file, allow_nonfinite
        self._zero: list[bool] = []  # of every up-projection that was read

    def read(self, keys: Iterable[str], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = {key: self._read(key, targets[key].dtype) for key in keys}
        if targets and not tensors:
            warn(f"nothing in {self.path} fits this model, and nothing was loaded")
        if self._zero and all(self._zero):
            warn(
                f"every up-projection in {self.path} is zero: these adapters were never trained, and the model "
                "computes what the image model does"
            )
        return tensors

    def _read(self, key: str, dtype: torch.dtype) -> Tensor:
        tensor = self._file.read(key).to(dtype)  # which may not reach as far as that of the file
        # A sum is finite only if every term is, and not zero only if some term is not. It takes one pass over what is
        # still in the cache; it may overflow or cancel, so only then look closer.
        total = float(tensor.sum(dtype=torch.float32))
        if not (self._allow_nonfinite or math.isfinite(total) or tensor.isfinite().all()):
            raise CheckpointError(
                f"{key!r} in {self.path} holds NaN or infinities as {dtype}; nothing was loaded. Pass "
                "allow_nonfinite=True to load it all the same"
            )
        if ".up_proj." in key:
            self._zero.append(total == 0 and not tensor.any())
        return tensor


def _load_existing(
    model: nn.Module,
    config: Mapping[str, Any],
    settings: AIMConfig,
    reader: _Reader,
    *,
    name: str | None,
    strict: bool,
    resize_frames: bool,
) -> LoadReport:
    _, root, shared = only_root(model)
    if name is not None:
        shared = state_of(model, name)
    targets, shapes = tensors_of(model, name), dict(reader.shapes)
    require_same_base(root, shared.record.anatomy, config, strict=strict)
    resized: set[str] = set()
    if resize_frames and settings.tubelet_size == shared.config.tubelet_size:
        before, after, frames = settings.num_frames, shared.config.num_frames, settings.attention_frames
        settings = dataclasses.replace(settings, num_frames=after)
        if before != after:
            resized = {key for key in shapes if is_temporal(key) and key in targets}
            shapes.update({key: _resized_shape(shapes[key], targets[key], frames) for key in resized})
    require_same_meaning(shared, settings, strict=strict)
    report = compare(targets, shapes, strict=strict)
    state = reader.read(fitting(targets, report), targets)
    if resized & state.keys():
        warn(f"temporal positions interpolated from {before} to {after} frames")
    for key in resized & state.keys():
        state[key] = resize_temporal(key, state[key], shared.num_frames)
    if not any(report):
        _require_own_labels(config, shared, reader.path)
    copy_tensors(targets, state)
    if shared.origin:  # which the new tensors do not come from; one wrapped for a purpose of its own keeps to that
        shared.origin = {} if any(report) else dict(config)
    return report


def _load_new(
    model: nn.Module,
    config: Mapping[str, Any],
    settings: AIMConfig,
    reader: _Reader,
    *,
    name: str | None,
    strict: bool,
) -> LoadReport:
    """Build an adapter as the checkpoint says, fill it, and only then put it into the model."""
    build: Callable[[bool], AdapterSet]
    if is_wrapped(model):
        _, root, shared = only_root(model)
        anatomy, new_name = shared.record.anatomy, str(name)

        def build(on_meta: bool) -> AdapterSet:
            return build_beside(model, new_name, settings, on_meta=on_meta)

        put: Callable[[nn.Module, AdapterSet], None] = shelve
    else:
        anatomy = read_anatomy(model)
        root, record = model.get_submodule(anatomy.root), make_record(model, anatomy)

        def build(on_meta: bool) -> AdapterSet:
            return build_adapter(root, settings, record=record, name=name or DEFAULT_NAME, owner=model, on_meta=on_meta)

        put = wrap_with_adapter
    require_memory(root.parameters())
    require_same_base(root, anatomy, config, strict=strict)
    settings = _runnable(settings)
    try:
        adapter = build(True)
    except ConfigError as error:
        raise CheckpointError(f"the settings in {reader.path} do not fit this model: {error!s:.500}") from error
    targets = adapter.declared()
    require_reasonable(root, targets)
    report = compare(targets, reader.shapes, strict=strict)
    keys = fitting(targets, report)
    state = reader.read(keys, targets)
    if len(keys) < len(targets):
        adapter = build(False)
    fill_adapter(root, adapter, state)
    root_state(adapter).origin = dict(config)
    _require_own_labels(config, root_state(adapter), reader.path)
    put(model, adapter)
    return report


def _runnable(settings: AIMConfig) -> AIMConfig:
    """Leave the choice of a kernel to this machine where the one a checkpoint was trained with cannot run."""
    try:
        choose(settings.attention)
    except UnsupportedKernelError as error:
        warn(f"saved with attention={settings.attention!r}, which cannot run here; 'auto' takes its place: {error}")
        return dataclasses.replace(settings, attention="auto")
    return settings


def _require_own_labels(config: Mapping[str, Any], shared: RootState, path: Path) -> None:
    try:
        require_labels(config.get("clip", {}).get("labels"), shared)
    except ConfigError as error:
        raise CheckpointError(f"the config in {path} does not fit its tensors: {error}") from error


def _resized_shape(shape: tuple[int, ...], target: Tensor, frames: int) -> tuple[int, ...]:
    """Return the shape after interpolation: that of the target, if the file holds the frames that its config says."""
    rows = frames if target.ndim == 3 else 2 * frames - 1  # of an embedding [1, T, D], of a bias [2T-1, H]
    return tuple(target.shape) if shape == (*target.shape[:-2], rows, target.shape[-1]) else shape
