"""Checks that a checkpoint belongs to a model: its tensors may fit another one without meaning the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy, fingerprint
from aim_adapters.checkpoint.base_digest import differs
from aim_adapters.config import MEANING, AIMConfig
from aim_adapters.core import RootState, is_merged, looks_untrained, sample_norms, warn_untrained
from aim_adapters.errors import CheckpointError, ConfigError, warn

# What to do about a base model with other weights.
OtherBase = Literal["refuse", "warn", "ignore"]

# Number of parameters that is always accepted, however small the image model.
_SMALL = 2**24


def require_same_base(
    root: nn.Module,
    anatomy: BackboneAnatomy,
    config: Mapping[str, Any],
    *,
    strict: bool,
    other_base: OtherBase = "refuse",
) -> None:
    """Refuse a checkpoint that was trained on another base model.

    Args:
        root: The image model.
        anatomy: Its anatomy.
        config: The checkpoint's config.
        strict: Refuse a base model with another name in the same library; otherwise warn about it.
        other_base: What to do about a base model of the same shapes with other weights, or another name. ``"ignore"``:
            its weights are yet to come.

    Raises:
        CheckpointError: The base model is another one.
    """
    require_same_shapes(root, anatomy, config)
    name = config.get("base_model_name_or_path")
    same_library = config.get("base_model_library") == anatomy.library
    if same_library and name and anatomy.model_name and _entry(name, anatomy) != _entry(anatomy.model_name, anatomy):
        strict = strict and other_base == "refuse"
        _refuse(f"the adapters were trained on {name:.200}, this model is {anatomy.model_name}", strict)
    if other_base == "ignore":
        return
    samples, digest = sample_norms(root, anatomy), config.get("base_digest")
    merged = is_merged(root)
    if not merged and (digest is None or not differs(root, anatomy, digest)):
        warn_untrained(samples, anatomy)
        return
    guess = "it is another checkpoint of the same shape, such as a fine-tuned one"
    if merged:
        guess = "merge_adapters has merged adapters into it; build it anew"
    elif looks_untrained(samples, anatomy):
        guess = "its norm weights are all 1, as after random initialization; perhaps pretrained=True was forgotten"
    trained_on = name or "an unnamed model"
    message = (
        f"this image model does not hold the weights that the adapters were trained on ({trained_on:.200}); {guess}"
    )
    if other_base == "refuse":
        raise CheckpointError(
            f"{message}. Nothing was loaded. Load the adapters into the weights they belong to, or pass "
            "allow_other_base=True to load them all the same"
        )
    warn(message)


def require_same_shapes(root: nn.Module, anatomy: BackboneAnatomy, config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that was trained on a base model of other shapes, for which no values are needed.

    Args:
        root: The image model; it may be on the meta device.
        anatomy: Its anatomy.
        config: The checkpoint's config.

    Raises:
        CheckpointError: The base model has other shapes.
    """
    expected, actual = config.get("base_fingerprint"), fingerprint(root, anatomy)
    name = config.get("base_model_name_or_path")
    if expected != actual:
        raise CheckpointError(
            f"the adapters were trained on another base: {name or 'an unnamed model':.200} with fingerprint "
            f"{expected!s:.80}, this model is {anatomy.model_name or 'unnamed'} with {actual}; load them into the base "
            "they belong to"
        )


def require_same_meaning(state: RootState, settings: AIMConfig, *, strict: bool) -> None:
    """Refuse a checkpoint whose tensors have another meaning in this adapter.

    Args:
        state: The adapter's container at the root.
        settings: The checkpoint's settings.
        strict: Refuse any difference; otherwise warn about it.

    Raises:
        CheckpointError: The settings differ, or do not fit the model.
    """
    depth = len(state.anatomy.blocks)
    differences = [
        f"{name}={getattr(settings, name)!r} (this model: {getattr(state.config, name)!r})"
        for name in MEANING
        if getattr(settings, name) != getattr(state.config, name)
    ]
    try:
        blocks, convolved = settings.adapted_blocks(depth), settings.conv_blocks(depth)
    except ConfigError as error:
        raise CheckpointError(f"the checkpoint's settings do not fit this model: {error!s:.500}") from error
    # If the image model has no output layer, projected and unprojected features have the same tensors.
    if not state.anatomy.heads and (settings.num_classes == 0) != (state.config.num_classes == 0):
        differences.append(f"num_classes={settings.num_classes} (this model: {state.config.num_classes})")
    if blocks != state.config.adapted_blocks(depth):
        differences.append(f"layers={settings.layers!r:.200} (this model: {state.config.layers!r})")
    if settings.conv_layers != state.config.conv_layers and convolved != state.config.conv_blocks(depth):
        differences.append(f"conv_layers={settings.conv_layers!r:.200} (this model: {state.config.conv_layers!r})")
    if differences:
        hint = ", or resize_frames=True to interpolate frames" if "num_frames" in differences[0] else ""
        _refuse(f"the adapters were saved with {', '.join(differences)}", strict, hint)


def require_reasonable(root: nn.Module, targets: Mapping[str, Tensor]) -> None:
    """Refuse settings whose tensors would take far more memory than the image model.

    Args:
        root: The image model.
        targets: The tensors that would be made, or read from a file that may be sparse.

    Raises:
        CheckpointError: They would be more than four times as large as the image model.
    """
    requested, present = (sum(t.numel() for t in tensors) for tensors in (targets.values(), root.parameters()))
    if requested > 4 * present + _SMALL:
        raise CheckpointError(
            f"the checkpoint's settings ask for {requested:,} parameters, many times the image model's {present:,}; "
            "they are damaged"
        )


def _entry(name: str, anatomy: BackboneAnatomy) -> str:
    """Return a name without the prefixes of a repository on the Hub that its own library publishes."""
    return name.removeprefix("hf-hub:").removeprefix(f"{anatomy.library}/")


def _refuse(message: str, strict: bool, hint: str = "") -> None:
    if strict:
        raise CheckpointError(f"{message}; nothing was loaded. Pass strict=False to load what fits all the same{hint}")
    warn(message)
