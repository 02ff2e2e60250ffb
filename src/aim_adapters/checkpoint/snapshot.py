"""The content of a checkpoint: an adapter's tensors and its config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aim_adapters.anatomy import fingerprint
from aim_adapters.arguments import (
    optional_text,
    require_flags,
    require_integer,
    require_string,
    require_texts,
)
from aim_adapters.checkpoint.base_digest import base_digest
from aim_adapters.checkpoint.completeness import require_complete, require_finite
from aim_adapters.checkpoint.format import FORMAT_VERSION, require_readable
from aim_adapters.checkpoint.state_dict import gather
from aim_adapters.clip_spec import checked_facts, known_labels, require_label_count
from aim_adapters.core import WrappedModel, is_sharded, require_memory, require_saveable
from aim_adapters.errors import CheckpointError, ConfigError
from aim_adapters.parameters import ParameterCount, count_adapter
from aim_adapters.version import __version__


class Snapshot(NamedTuple):
    """The content of a checkpoint, ready to be written.

    Attributes:
        config: Content of the config file.
        tensors: The adapter's tensors by key, contiguous.
        parameters: Numbers of trained and all parameters of the video model.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    parameters: ParameterCount

    def metadata(self) -> dict[str, str]:
        """Return the metadata in the header of the weights, with the config, so that they can be loaded alone."""
        return {
            "format": "pt",
            "format_version": str(FORMAT_VERSION),
            "aim_version": self.config["aim_version"],
            "aim_config": json.dumps(self.config),
        }

    def config_text(self) -> str:
        """Return the text of the config file."""
        return json.dumps(self.config, indent=2) + "\n"


class SavedFacts(NamedTuple):
    """What a caller says about a model for its config; the arguments of `save_adapters`, checked."""

    base_model_name_or_path: str | None
    base_model_revision: str | None
    frame_stride: int | None
    labels: list[str] | None


def take_snapshot(
    model: nn.Module,
    wrapped: WrappedModel,
    *,
    name: str | None = None,
    base_model_name_or_path: str | None = None,
    base_model_revision: str | None = None,
    frame_stride: int | None = None,
    labels: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    allow_nonfinite: bool = False,
) -> Snapshot | None:
    """Gather the content of an adapter's checkpoint.

    Args:
        model: A wrapped model.
        wrapped: Result of `only_root` for it.
        name: Name of the adapter; by default the one that runs.
        base_model_name_or_path: Name of the base model; by default its name in its library.
        base_model_revision: Revision of the base model's weights.
        frame_stride: Distance between sampled frames, in frames of the video.
        labels: Names of the classes in the order of the outputs; by default those that the image model knows.
        mean: Mean of each channel by which frames are normalized; by default that of the image model, if known.
        std: Standard deviation of each channel, likewise.
        allow_nonfinite: Whether NaN and infinities are saved.

    Returns:
        The content; None on every process but the first if the model is sharded.

    Raises:
        ConfigError: There is no adapter of this name; ``labels`` are no strings, or do not have as many names as the
            adapter has classes; ``frame_stride`` is not an integer >= 1; ``mean`` or ``std`` is not a number for each
            channel; or a name or label is not a string, or too long.
        CheckpointError: The adapter could not be loaded again, or holds NaN or infinities.
        StateError: The model has no weights (meta device), or its adapters alone would give another model: another tool
            has replaced parts of it, or parameters of the image model train.
    """
    require_flags(allow_nonfinite=allow_nonfinite)
    base_model_name_or_path, base_model_revision, frame_stride, labels = saved_facts(
        base_model_name_or_path=base_model_name_or_path,
        base_model_revision=base_model_revision,
        frame_stride=frame_stride,
        labels=labels,
    )
    adapter = wrapped.find(name)
    require_saveable(model, wrapped)
    require_complete(wrapped, adapter)
    state = adapter.state
    anatomy, origin = state.anatomy, state.origin
    if origin.get("base_model_library") != anatomy.library:
        origin = {}  # the same weights have different names in different libraries
    require_label_count(labels, state)
    channels = anatomy.in_channels
    facts = {**state.clip, **checked_facts(stride=frame_stride, mean=mean, std=std, channels=channels)}
    name_of_base = base_model_name_or_path or origin.get("base_model_name_or_path") or anatomy.model_name
    if labels is None:
        labels = known_labels(wrapped, adapter, name_of_base)
    sharded = any(map(is_sharded, adapter.tensors.values()))
    require_memory(adapter.tensors.values())
    tensors = _separate(gather(adapter.tensors))
    if not allow_nonfinite:
        require_finite(tensors)
    digest = base_digest(wrapped.root, anatomy)
    if sharded and torch.distributed.get_rank() != 0:
        return None
    config = {
        "library_name": "aim-adapters",
        "peft_type": "AIM",
        "format_version": FORMAT_VERSION,
        "aim_version": __version__,
        **state.config.to_dict(),
        "base_model_name_or_path": name_of_base,
        "base_model_library": anatomy.library,
        "base_model_revision": base_model_revision or origin.get("base_model_revision") or anatomy.model_revision,
        "base_model_arguments": dict(anatomy.build_arguments),
        "base_fingerprint": fingerprint(wrapped.root, anatomy),
        "base_digest": digest,
        "clip": {
            "frames": state.config.num_frames,
            "stride": facts.get("stride"),
            "size": anatomy.image_size,
            "mean": facts.get("mean") or anatomy.image_mean,
            "std": facts.get("std") or anatomy.image_std,
            "labels": None if labels is None else list(labels),
        },
    }
    snapshot = Snapshot(config, tensors, count_adapter(model, wrapped, adapter))
    try:
        require_readable(config, snapshot.metadata(), tensors)
    except (CheckpointError, TypeError) as error:  # TypeError: JSON cannot hold a value, such as a path
        raise ConfigError(f"this checkpoint could not be read again; check names and labels: {error}") from error
    return snapshot


def saved_facts(
    *,
    base_model_name_or_path: str | None,
    base_model_revision: str | None,
    frame_stride: int | None,
    labels: Sequence[str] | None,
) -> SavedFacts:
    """Check what a caller says about a model for its config.

    Args:
        base_model_name_or_path: Name of the base model.
        base_model_revision: Revision of the base model's weights.
        frame_stride: Distance between sampled frames, in frames of the video.
        labels: Names of the classes.

    Raises:
        ConfigError: One is of another kind.
    """
    return SavedFacts(
        None if base_model_name_or_path is None else require_string("base_model_name_or_path", base_model_name_or_path),
        optional_text("base_model_revision", base_model_revision),
        None if frame_stride is None else require_integer("frame_stride", frame_stride, low=1),
        None if labels is None else require_texts("labels", labels, expected="a sequence of names"),
    )


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors contiguous, and those that share memory with another one copied: a file has no place for that."""
    separate, seen = {}, set()
    for key, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        separate[key] = tensor.clone(memory_format=torch.contiguous_format) if storage in seen else tensor.contiguous()
        seen.add(storage)
    return separate
