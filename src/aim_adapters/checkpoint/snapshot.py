"""One adapter with everything that a checkpoint says of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aim_adapters.anatomy import fingerprint
from aim_adapters.checkpoint.format import FORMAT_VERSION, require_readable
from aim_adapters.checkpoint.state_dict import gather, is_sharded
from aim_adapters.core import RootState, WrappedModel, require_memory
from aim_adapters.errors import CheckpointError, ConfigError
from aim_adapters.parameters import ParameterCount, count_adapter
from aim_adapters.version import __version__


class Snapshot(NamedTuple):
    """One adapter, ready to be written.

    Attributes:
        config: What goes into the config.
        state: The tensors by key.
        parameters: How many there are.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    parameters: ParameterCount

    def metadata(self) -> dict[str, str]:
        """Return what goes into the header of the weights, so that they load alone."""
        return {
            "format": "pt",
            "format_version": str(FORMAT_VERSION),
            "aim_version": self.config["aim_version"],
            "aim_config": json.dumps(self.config),
        }

    def config_text(self) -> str:
        """Return the content of the config file."""
        return json.dumps(self.config, indent=2) + "\n"


def take_snapshot(
    model: nn.Module,
    wrapped: WrappedModel,
    *,
    name: str | None = None,
    base_model_name_or_path: str | None = None,
    base_model_revision: str | None = None,
    frame_stride: int | None = None,
    labels: Sequence[str] | None = None,
) -> Snapshot | None:
    """Gather one adapter with everything a checkpoint says of it.

    Args:
        model: A wrapped model.
        wrapped: What `only_root` found in it.
        name: Which adapter, of several; by default the one that runs.
        base_model_name_or_path: Name of the base model; by default the one its library knows.
        base_model_revision: Revision of the base model's weights.
        frame_stride: Frames from one sampled frame to the next.
        labels: Names of the classes in the order of the outputs.

    Returns:
        The adapter; None on all processes but the first where the model is sharded.

    Raises:
        ConfigError: There is no adapter of this name; ``labels`` is a string, or does not have as many names as the
            adapter has classes; ``frame_stride`` is no number of frames; or a name or label is no string or too long.
        StateError: The model has no weights (meta device).
    """
    adapter = wrapped.find(name)
    state = adapter.state
    anatomy, origin = state.anatomy, state.origin
    said = origin.get("clip", {})
    if origin.get("base_model_library") != anatomy.library:
        origin = {}  # the same weights have another name in another library
    require_labels(labels, state)
    labels = said.get("labels") if labels is None else labels
    if frame_stride is not None and (type(frame_stride) is not int or frame_stride < 1):
        raise ConfigError(f"frame_stride must be an integer >= 1, got {frame_stride!r}")
    sharded = any(map(is_sharded, adapter.tensors.values()))
    require_memory(adapter.tensors.values())
    tensors = {key: tensor.contiguous() for key, tensor in gather(adapter.tensors).items()}
    if sharded and torch.distributed.get_rank() != 0:
        return None
    config = {
        "library_name": "aim-adapters",
        "peft_type": "AIM",
        "format_version": FORMAT_VERSION,
        "aim_version": __version__,
        **state.config.to_dict(),
        "base_model_name_or_path": base_model_name_or_path
        or origin.get("base_model_name_or_path")
        or anatomy.model_name,
        "base_model_library": anatomy.library,
        "base_model_revision": base_model_revision or origin.get("base_model_revision") or anatomy.model_revision,
        "base_model_arguments": dict(anatomy.build_arguments),
        "base_fingerprint": fingerprint(wrapped.root, anatomy),
        "clip": {
            "frames": state.config.num_frames,
            "stride": said.get("stride") if frame_stride is None else frame_stride,
            "size": anatomy.image_size,
            "mean": anatomy.image_mean,
            "std": anatomy.image_std,
            "labels": None if labels is None else list(labels),
        },
    }
    snapshot = Snapshot(config, tensors, count_adapter(model, wrapped, adapter))
    try:
        require_readable(config, snapshot.metadata(), tensors)
    except (CheckpointError, TypeError) as error:  # TypeError: what JSON cannot hold, such as a path
        raise ConfigError(f"this checkpoint could not be read again; check names and labels: {error}") from error
    return snapshot


def require_labels(labels: Sequence[str] | None, state: RootState) -> None:
    """Refuse names of classes that are not those of an adapter.

    Args:
        labels: The names, or None.
        state: The adapter's container at the root.

    Raises:
        ConfigError: They are a string, or not as many as the adapter has classes.
    """
    classifier = state.classifier("head")
    if labels is not None and (isinstance(labels, str) or not isinstance(labels, Sequence)):
        raise ConfigError(f"labels must be a sequence of names, got the {type(labels).__name__} {labels!r:.200}")
    if labels is not None and (classifier is None or len(labels) != classifier.out_features):
        outputs = "no classification layer" if classifier is None else f"{classifier.out_features} classes"
        raise ConfigError(f"got {len(labels)} labels for a model with {outputs}")
