"""Adapters loaded from checkpoints, as a whole or not at all."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aim_adapters.adapters import build_beside, require_name
from aim_adapters.anatomy import BackboneAnatomy
from aim_adapters.arguments import optional_text, require_flags
from aim_adapters.backbones import read_anatomy
from aim_adapters.checkpoint.agreement import OtherBase, require_reasonable, require_same_base, require_same_meaning
from aim_adapters.checkpoint.format import OpenCheckpoint, open_checkpoint
from aim_adapters.checkpoint.state_dict import LoadReport, compare, copy_tensors, fitting
from aim_adapters.clip_spec import clip_of, require_label_count
from aim_adapters.config import AIMConfig
from aim_adapters.core import (
    AdapterSet,
    RootState,
    WrappedModel,
    build_adapter,
    fill_adapter,
    is_wrapped,
    only_root,
    require_memory,
    require_wrappable,
)
from aim_adapters.errors import CheckpointError, ConfigError, warn
from aim_adapters.frames import resize_temporal
from aim_adapters.layers import is_temporal
from aim_adapters.storage import HubOptions, locate
from aim_adapters.wrapping import DEFAULT_NAME, make_record, wrap_with_adapter


def load_adapters(
    model: nn.Module,
    source: str | os.PathLike[str],
    strict: bool = True,
    *,
    name: str | None = None,
    resize_frames: bool = False,
    allow_nonfinite: bool = False,
    allow_other_base: bool = False,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> LoadReport:
    """Load an adapter that `save_adapters` or `push_to_hub` wrote.

    A model that is not wrapped yet is wrapped with the checkpoint's settings. On any error the model is unchanged.

    Args:
        model: The base model, wrapped with the checkpoint's settings or not wrapped.
        source: A directory, or the id of a repository on the Hugging Face Hub: ``"user/repo"``.
        strict: Refuse any difference: a base model of another name, other settings, missing or extra tensors, unknown
            keys in the config. Otherwise load what fits, warn about settings, and report the rest. A base model of
            other shapes is always refused.
        name: Name of the adapter to load into; by default the one that runs. A new name adds an adapter with the
            checkpoint's settings; `set_adapter` makes it run.
        resize_frames: Let a wrapped model with another number of frames load the checkpoint: its temporal embedding or
            biases are interpolated linearly, with a warning.
        allow_nonfinite: Whether NaN and infinities are loaded.
        allow_other_base: Load into a base model of the same shapes with other weights, with a warning: another
            checkpoint, or one that is yet to be filled.
        revision: Branch, tag or commit on the Hub.
        subfolder: Folder of the checkpoint inside ``source``.
        token: Access token for the Hub; by default the one this machine is logged in with.
        cache_dir: Where downloads are kept; by default the Hub's own cache.
        local_files_only: Use only files that were downloaded before.
        force_download: Download files again that were downloaded before.

    Returns:
        The keys that did not load; none if ``strict``.

    Raises:
        TypeError: ``model`` is not a module, or ``source`` is not a path.
        CheckpointError: The files cannot be fetched, are missing, damaged or of another library, hold NaN or
            infinities, or do not fit the model.
        ConfigError: ``name`` is not a valid name of an adapter, or a flag is neither True nor False.
        UnsupportedModelError: The model is not wrapped and cannot be adapted.
        StateError: The model holds several wrapped models, has no weights (meta device), or is compiled, sharded or
            distributed where an adapter has to be added.
    """
    require_flags(
        strict=strict, resize_frames=resize_frames, allow_nonfinite=allow_nonfinite, allow_other_base=allow_other_base
    )
    name = optional_text("name", name)
    wrapped = only_root(model) if is_wrapped(model) else None
    if wrapped is None:
        require_wrappable(model)
    if name is not None and (wrapped is None or name not in wrapped.names()):
        require_name(name)
    options = HubOptions(
        revision=revision,
        subfolder=subfolder,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    other_base: OtherBase = "warn" if allow_other_base else "refuse"
    with open_checkpoint(locate(source, options), strict=strict) as checkpoint:
        if wrapped is None:
            return wrap_and_load(
                model, checkpoint, name=name, strict=strict, allow_nonfinite=allow_nonfinite, other_base=other_base
            ).report
        loading = _Loading(checkpoint, strict=strict, allow_nonfinite=allow_nonfinite, other_base=other_base)
        if name is None or name in wrapped.names():
            return _load_into(wrapped, loading, name=name, resize_frames=resize_frames)
        return _load_beside(model, wrapped, loading, name=name)


class Loaded(NamedTuple):
    """An adapter that was made from a checkpoint.

    Attributes:
        adapter: The adapter.
        report: The keys that did not load.
    """

    adapter: AdapterSet
    report: LoadReport


def wrap_and_load(
    model: nn.Module,
    checkpoint: OpenCheckpoint,
    *,
    name: str | None,
    strict: bool,
    allow_nonfinite: bool = False,
    other_base: OtherBase = "refuse",
) -> Loaded:
    """Wrap an image model with the settings of an open checkpoint, and load its adapter.

    Args:
        model: The image model.
        checkpoint: The open checkpoint.
        name: Name of the adapter.
        strict: As in `load_adapters`.
        allow_nonfinite: As in `load_adapters`.
        other_base: What to do about a base model with other weights.

    Raises:
        As `load_adapters`.
    """
    loading = _Loading(checkpoint, strict=strict, allow_nonfinite=allow_nonfinite, other_base=other_base)
    anatomy = read_anatomy(model)
    root, record = model.get_submodule(anatomy.root), make_record(model, anatomy)

    def build(settings: AIMConfig, on_meta: bool) -> AdapterSet:
        return build_adapter(root, settings, record=record, name=name or DEFAULT_NAME, owner=model, on_meta=on_meta)

    loaded = loading.new_adapter(root, anatomy, build)
    wrap_with_adapter(model, loaded.adapter)
    return loaded


def _load_beside(model: nn.Module, wrapped: WrappedModel, loading: _Loading, *, name: str) -> LoadReport:
    """Add an idle adapter with the checkpoint's settings and tensors to a wrapped model."""

    def build(settings: AIMConfig, on_meta: bool) -> AdapterSet:
        return build_beside(model, wrapped, name, settings, on_meta=on_meta)

    loaded = loading.new_adapter(wrapped.root, wrapped.state.anatomy, build)
    wrapped.state.shelve(loaded.adapter)
    return loaded.report


def _load_into(wrapped: WrappedModel, loading: _Loading, *, name: str | None, resize_frames: bool) -> LoadReport:
    """Copy a checkpoint into an existing adapter of a wrapped model."""
    state, targets = wrapped.find(name)
    checkpoint, settings, strict = loading.checkpoint, loading.settings, loading.strict
    shapes = dict(checkpoint.file.shapes)
    require_same_base(wrapped.root, state.anatomy, checkpoint.config, strict=strict, other_base=loading.other_base)
    resized: set[str] = set()
    if resize_frames and settings.tubelet_size == state.config.tubelet_size:
        before, after, frames = settings.num_frames, state.config.num_frames, settings.attention_frames
        settings = dataclasses.replace(settings, num_frames=after)
        if before != after:
            resized = {key for key in shapes if is_temporal(key) and key in targets}
            shapes.update({key: _resized_shape(shapes[key], targets[key], frames) for key in resized})
    require_same_meaning(state, settings, strict=strict)
    report = compare(targets, shapes, strict=strict)
    if not any(report):
        loading.require_own_labels(state)
    keys = fitting(targets, report)
    if resized or not loading.read_in_place(keys, targets):
        tensors = loading.read(keys, targets)
        if resized & tensors.keys():
            warn(f"temporal positions interpolated from {before} to {after} frames")
        for key in resized & tensors.keys():
            tensors[key] = resize_temporal(key, tensors[key], state.num_frames)
        copy_tensors(targets, tensors)
    # An adapter that came from another checkpoint now comes from this one; one that was wrapped by hand has no origin.
    if state.origin:
        state.origin = {} if any(report) else dict(checkpoint.config)
    if not any(report):
        state.clip = clip_of(checkpoint.config)
    elif state.clip and not state.origin:  # two checkpoints mixed: neither tells of the whole
        state.clip = {}
    return report


class _Loading:
    """One load of a checkpoint: it reads tensors, refuses NaN and infinities, and notices untrained adapters.

    Args:
        checkpoint: The open checkpoint.
        strict: Whether any difference is refused.
        allow_nonfinite: Whether NaN and infinities are loaded.
        other_base: What to do about a base model with other weights.

    Raises:
        CheckpointError: The settings are invalid.
    """

    def __init__(
        self, checkpoint: OpenCheckpoint, *, strict: bool, allow_nonfinite: bool, other_base: OtherBase
    ) -> None:
        self.checkpoint, self.settings, self.strict = checkpoint, checkpoint.settings(), strict
        self.other_base, self._allow_nonfinite = other_base, allow_nonfinite
        self._zero: list[bool] = []  # whether it is zero, for each up-projection that was read

    def new_adapter(
        self, root: nn.Module, anatomy: BackboneAnatomy, build: Callable[[AIMConfig, bool], AdapterSet]
    ) -> Loaded:
        """Build an adapter with the checkpoint's settings and tensors; the image model is not changed.

        Args:
            root: The image model.
            anatomy: Its anatomy.
            build: Builds an adapter with given settings, on the meta device or not.

        Returns:
            The adapter, and the keys that did not load.

        Raises:
            CheckpointError: The checkpoint does not fit the model.
            StateError: The model has no weights (meta device).
        """
        path = self.checkpoint.file.path
        require_memory(root.parameters())
        require_same_base(root, anatomy, self.checkpoint.config, strict=self.strict, other_base=self.other_base)
        try:
            adapter = build(self.settings, True)
        except ConfigError as error:
            raise CheckpointError(f"the settings in {path} do not fit this model: {error!s:.500}") from error
        targets = adapter.declared()
        require_reasonable(root, targets)
        report = compare(targets, self.checkpoint.file.shapes, strict=self.strict)
        keys = fitting(targets, report)
        tensors = self.read(keys, targets)
        if len(keys) < len(targets):
            adapter = build(self.settings, False)
        fill_adapter(root, adapter, tensors)
        adapter.state.origin = dict(self.checkpoint.config)
        adapter.state.clip = clip_of(self.checkpoint.config)
        self.require_own_labels(adapter.state)
        return Loaded(adapter, report)

    def read(self, keys: Iterable[str], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Read tensors in the dtypes of the adapter.

        Args:
            keys: The keys to read.
            targets: The adapter's tensors.

        Raises:
            CheckpointError: A tensor holds NaN or infinities, or cannot be read, or the file was changed meanwhile.
        """
        tensors = {key: self._read(key, targets[key].dtype) for key in keys}
        self.checkpoint.file.require_unchanged()
        path = self.checkpoint.file.path
        if targets and not tensors:
            warn(f"nothing in {path} fits this model, and nothing was loaded")
        if self._zero and all(self._zero):
            warn(
                f"every up-projection in {path} is zero: these adapters were never trained, and the model computes "
                "what the image model does"
            )
        return tensors

    def read_in_place(self, keys: Sequence[str], targets: Mapping[str, Tensor]) -> bool:
        """Check the tensors, and then read them into those of the adapter, without the memory and time of a copy.

        Args:
            keys: The keys to read.
            targets: The adapter's tensors.

        Returns:
            Whether that was done. It is where nobody can write into the file meanwhile, its tensors are those of the
            adapter and lie in memory as they do there, and there is nothing to refuse or to warn about.

        Raises:
            CheckpointError: The file was changed since it was opened.
        """
        file = self.checkpoint.file
        dtypes = file.dtypes
        kinds = {*dtypes.values(), *(targets[key].dtype for key in keys)}
        if len(kinds) != 1 or len(keys) != len(dtypes) or not all(_lies_plainly(targets[key]) for key in keys):
            return False
        with file.held_still() as held:
            # A finite sum has finite terms; see `_read`.
            if not held or not all(math.isfinite(float(part.sum(dtype=torch.float32))) for part in file.parts(*kinds)):
                return False
            if all(self._is_zero(key) for key in keys if ".up_proj." in key):
                return False
            file.read_into({key: targets[key] for key in keys})
        return True

    def _is_zero(self, key: str) -> bool:
        return not self.checkpoint.file.read(key).any()

    def require_own_labels(self, state: RootState) -> None:
        """Refuse a config with labels that do not fit the adapter's classes.

        Args:
            state: The adapter's container at the root.

        Raises:
            CheckpointError: There are not as many labels as classes.
        """
        try:
            require_label_count(self.checkpoint.config.get("clip", {}).get("labels"), state)
        except ConfigError as error:
            path = self.checkpoint.file.path
            raise CheckpointError(f"the config in {path} does not fit its tensors: {error}") from error

    def _read(self, key: str, dtype: torch.dtype) -> Tensor:
        tensor = self.checkpoint.file.read(key).to(dtype)  # its range may be smaller than that of the file's dtype
        # If a sum is finite, so is every term; if it is not zero, neither are all terms. It takes one pass over memory
        # that is still in the cache. It may also overflow or cancel; only then are the elements checked.
        total = float(tensor.sum(dtype=torch.float32))
        if not (self._allow_nonfinite or math.isfinite(total) or tensor.isfinite().all()):
            raise CheckpointError(
                f"{key!r} in {self.checkpoint.file.path} holds NaN or infinities as {dtype}; nothing was loaded. Pass "
                "allow_nonfinite=True to load it all the same"
            )
        if ".up_proj." in key:
            self._zero.append(total == 0 and not tensor.any())
        return tensor


def _lies_plainly(tensor: Tensor) -> bool:
    """Return whether a tensor lies in memory as it does in a file."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.is_inference()
    return plain and tensor.device.type == "cpu" and tensor.is_contiguous()


def _resized_shape(shape: tuple[int, ...], target: Tensor, frames: int) -> tuple[int, ...]:
    """Return the shape after interpolation: the target's, if the file has as many frames as its config states."""
    rows = frames if target.ndim == 3 else 2 * frames - 1  # embedding [1, T, D] or bias [2T-1, H]
    return tuple(target.shape) if shape == (*target.shape[:-2], rows, target.shape[-1]) else shape
