"""Save and load what was trained, and nothing else: safetensors and JSON, strict and transactional."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy, fingerprint
from aim_adapters.backbones import read_anatomy
from aim_adapters.config import AIMConfig
from aim_adapters.errors import CheckpointError, ConfigError
from aim_adapters.frames import resize_temporal
from aim_adapters.guards import is_wrapped, only_root, require_wrappable
from aim_adapters.layers.state import declared_tensors
from aim_adapters.layers.temporal import is_temporal
from aim_adapters.parameters import count_parameters
from aim_adapters.root import RootState
from aim_adapters.wrapping import unwrap_image_model, wrap_with_config

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
CARD_NAME = "README.md"
FORMAT_VERSION = 1

# Settings that change what the same tensors compute, beside those that show in the tensors' names and shapes.
_MEANING = ("num_frames", "tubelet_size", "scale", "components", "temporal_input_adapter")


class LoadReport(NamedTuple):
    """Keys that did not load: absent from the file, unknown to the model, of another shape."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]


def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return what was trained, under keys that depend on neither library nor wrapper.

    Args:
        model: A wrapped model, itself possibly in DDP, FSDP2 (every rank must call: shards are gathered),
            ``torch.compile`` or activation checkpointing.

    Returns:
        ``blocks.{i}.temporal.down_proj.weight``, ``temporal_embedding``, ``norm.*``, ``head.*``; detached, sharing
        memory with the model unless sharded.

    Raises:
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    only_root(model)
    return {key: _gather(tensor.detach()) for key, tensor in declared_tensors(model).items()}


def load_adapter_state_dict(model: nn.Module, state: Mapping[str, Tensor], strict: bool = True) -> LoadReport:
    """Copy tensors into a wrapped model, all or (when ``strict``) none.

    Args:
        model: A wrapped model.
        state: Tensors under the keys of `adapter_state_dict`; cast to the model's dtype and device.
        strict: Refuse missing, unexpected and misshapen tensors; otherwise load what fits and report the rest.

    Raises:
        CheckpointError: ``strict``, and something does not fit, or an entry is not a floating-point tensor; the model
            is unchanged.
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    only_root(model)
    targets = declared_tensors(model)
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise CheckpointError(f"{key!r} must be a floating-point tensor, got {found}; nothing was loaded")
    common = [key for key in targets if key in state]
    report = LoadReport(
        missing=tuple(key for key in targets if key not in state),
        unexpected=tuple(key for key in state if key not in targets),
        mismatched=tuple(key for key in common if state[key].shape != targets[key].shape),
    )
    if strict and any(report):
        shapes = {key: f"{list(state[key].shape)} for {list(targets[key].shape)}" for key in report.mismatched}
        problems = (
            _named("missing", report.missing),
            _named("unexpected", report.unexpected),
            _named("of another shape", [f"{key} ({shape})" for key, shape in shapes.items()]),
        )
        raise CheckpointError(
            f"the checkpoint does not fit the model, nothing was loaded: {'; '.join(filter(None, problems))}. "
            "Wrap the model with the checkpoint's own settings, or pass strict=False to load what fits"
        )
    with torch.no_grad():
        for key in common:
            if key not in report.mismatched:
                _copy_into(targets[key], state[key])
    return report


def save_adapters(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    base_model_name_or_path: str | None = None,
    base_model_revision: str | None = None,
    frame_stride: int | None = None,
    labels: Sequence[str] | None = None,
) -> Path:
    """Write the adapters, their config and a short card into a directory; nothing of the image model.

    Each file is replaced atomically; the weights come last and carry the whole config in their header, so that an
    interrupted save leaves a checkpoint that loads. An existing ``README.md`` is left alone. With FSDP2 every rank
    must call, and rank 0 writes.

    Args:
        model: A wrapped model.
        directory: Made if it does not exist.
        base_model_name_or_path: Name of the base model; by default the one its library knows.
        base_model_revision: Revision of the base model's weights.
        frame_stride: Frames from one sampled frame to the next, for whoever makes clips later.
        labels: Names of the classes in the order of the outputs.

    Returns:
        The directory.

    Raises:
        StateError: The model is not wrapped, or holds several wrapped models.
        CheckpointError: ``directory`` is a file.
        ConfigError: ``labels`` is a string, or does not have as many names as the model has classes.
    """
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file; save_adapters expects a directory")
    _, root, shared = only_root(model)
    anatomy = shared.record.anatomy
    classifier = shared.classifier("head")
    if isinstance(labels, (str, Mapping)):
        raise ConfigError(f"labels must be a sequence of names, got the {type(labels).__name__} {labels!r}")
    if labels is not None and (classifier is None or len(labels) != classifier.out_features):
        outputs = "no classification layer" if classifier is None else f"{classifier.out_features} classes"
        raise ConfigError(f"got {len(labels)} labels for a model with {outputs}")
    sharded = any(hasattr(tensor, "full_tensor") for tensor in declared_tensors(model).values())
    state = {key: tensor.contiguous() for key, tensor in adapter_state_dict(model).items()}
    if sharded and torch.distributed.get_rank() != 0:
        return path
    from aim_adapters import __version__  # the one place that holds it; imported late as it imports this module

    config = {
        "library_name": "aim-adapters",
        "peft_type": "AIM",
        "format_version": FORMAT_VERSION,
        "aim_version": __version__,
        **shared.config.to_dict(),
        "base_model_name_or_path": base_model_name_or_path or anatomy.model_name,
        "base_model_library": anatomy.library,
        "base_model_revision": base_model_revision,
        "base_fingerprint": fingerprint(root, anatomy),
        "clip": {
            "frames": shared.config.num_frames,
            "stride": frame_stride,
            "size": anatomy.image_size,
            "mean": anatomy.image_mean,
            "std": anatomy.image_std,
            "labels": None if labels is None else list(labels),
        },
    }
    metadata = {
        "format": "pt",
        "format_version": str(FORMAT_VERSION),
        "aim_version": __version__,
        "aim_config": json.dumps(config),
    }
    path.mkdir(parents=True, exist_ok=True)
    if not (path / CARD_NAME).exists():
        _replace(path / CARD_NAME, lambda file: file.write_text(_card(model, config), encoding="utf-8"))
    _replace(path / CONFIG_NAME, lambda file: file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8"))
    _replace(path / WEIGHTS_NAME, lambda file: save_file(state, file, metadata=metadata))
    return path


def load_adapters(
    model: nn.Module, source: str | os.PathLike[str], strict: bool = True, *, resize_frames: bool = False
) -> LoadReport:
    """Load adapters that `save_adapters` wrote.

    A model that is not wrapped yet is wrapped as the checkpoint says. On any error the model is as it was.

    Args:
        model: The base model, wrapped with the checkpoint's settings or not wrapped.
        source: The directory.
        strict: Refuse whatever differs: a base of another name, other settings, missing or extra tensors. Otherwise
            load what fits, warn about settings and report the rest. A base of other shapes is always refused.
        resize_frames: Let a wrapped model with another number of frames take the checkpoint: its temporal embedding
            or biases are interpolated linearly, which a warning says.

    Raises:
        CheckpointError: The files are missing, damaged, foreign, or do not fit the model.
        UnsupportedModelError: The model is not wrapped and cannot be adapted.
        UnsupportedKernelError: The model is not wrapped, and the attention named in the checkpoint cannot run here.
        StateError: The model holds several wrapped models, or is not wrapped but compiled, sharded or distributed.
    """
    config, state = _read(Path(source))
    aim_config = _aim_config(config, Path(source))
    if is_wrapped(model):
        _, root, shared = only_root(model)
        _require_same_base(root, shared.record.anatomy, config, strict)
        same_time = aim_config.tubelet_size == shared.config.tubelet_size
        if resize_frames and same_time and aim_config.num_frames != shared.config.num_frames:
            warnings.warn(
                f"temporal positions interpolated from {aim_config.num_frames} to {shared.config.num_frames} frames",
                stacklevel=2,
            )
            state = {k: resize_temporal(k, t, shared.num_frames) if is_temporal(k) else t for k, t in state.items()}
            aim_config = dataclasses.replace(aim_config, num_frames=shared.config.num_frames)
        _require_same_meaning(shared, aim_config, strict)
        return load_adapter_state_dict(model, state, strict)
    require_wrappable(model)
    anatomy = read_anatomy(model)
    _require_same_base(model.get_submodule(anatomy.root), anatomy, config, strict)
    try:
        wrap_with_config(model, aim_config)
    except ConfigError as error:
        raise CheckpointError(f"the settings in {source} do not fit this model: {error}") from error
    loaded = False
    try:
        report = load_adapter_state_dict(model, state, strict)
        loaded = True
    finally:
        if not loaded:
            unwrap_image_model(model)
    return report


def _gather(tensor: Tensor) -> Tensor:
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def _copy_into(target: Tensor, source: Tensor) -> None:
    if hasattr(target, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(target, DTensor)
        source = distribute_tensor(source.to(target.device, target.dtype), target.device_mesh, target.placements)
    target.copy_(source)


def _named(what: str, keys: Sequence[str], most: int = 5) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f"{len(keys)} {what}: {', '.join(keys[:most])}{more}"


def _replace(target: Path, write: Any) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("r+b") as file:  # Windows syncs only what is open for writing
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _read(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config in the weights' header, which is what the weights were saved with, and the tensors."""
    weights, config_file = directory / WEIGHTS_NAME, directory / CONFIG_NAME
    beside = _read_json(config_file.read_bytes(), config_file) if config_file.is_file() else None
    if beside is not None:
        _require_ours(beside, config_file)
    if not weights.is_file():
        raise CheckpointError(f"{directory} holds no {WEIGHTS_NAME}; expected a directory made by save_adapters")
    try:
        with safe_open(weights, framework="pt") as file:
            text = (file.metadata() or {}).get("aim_config")
            if text is None:
                raise CheckpointError(f"{weights} has no AIM config in its header; it was not made by save_adapters")
            config = _read_json(text, weights)
            _require_ours(config, weights)
            state = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise CheckpointError(f"{weights} is damaged or not a safetensors file: {error}") from error
    if beside is not None and beside != config:
        warnings.warn(
            f"{config_file} differs from the config inside {WEIGHTS_NAME}, which is the one used", stacklevel=3
        )
    return config, state


def _read_json(text: str | bytes, where: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # also: not UTF-8, integers too long to convert, nesting too deep
        raise CheckpointError(f"the config in {where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"the config in {where} must be a JSON object, got {type(value).__name__}")
    return value


def _require_ours(config: dict[str, Any], where: Path) -> None:
    kind = config.get("peft_type")
    if kind != "AIM":
        raise CheckpointError(f"{where} describes an adapter of type {kind!r}, expected 'AIM'")
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{where} has format version {version!r}, this library reads {FORMAT_VERSION}; it was written by "
            f"aim-adapters {config.get('aim_version')}: use that version or a newer one"
        )


def _aim_config(config: dict[str, Any], where: Path) -> AIMConfig:
    fields = AIMConfig(num_frames=1).to_dict()
    try:
        return AIMConfig.from_dict({key: config[key] for key in fields if key in config})
    except ConfigError as error:
        raise CheckpointError(f"the config in {where} is invalid: {error}") from error


def _require_same_base(root: nn.Module, anatomy: BackboneAnatomy, config: dict[str, Any], strict: bool) -> None:
    expected, found = config.get("base_fingerprint"), fingerprint(root, anatomy)
    name = config.get("base_model_name_or_path")
    if expected != found:
        raise CheckpointError(
            f"the adapters were trained on another base: {name or 'an unnamed model'} with fingerprint {expected}, "
            f"this model is {anatomy.model_name or 'unnamed'} with {found}; load them into the base they belong to"
        )
    same_library = config.get("base_model_library") == anatomy.library
    if same_library and name and anatomy.model_name and name != anatomy.model_name:
        _refuse(f"the adapters were trained on {name}, this model is {anatomy.model_name}", strict)


def _require_same_meaning(shared: RootState, config: AIMConfig, strict: bool) -> None:
    depth = len(shared.record.anatomy.blocks)
    differs = [
        f"{name}={getattr(config, name)!r} (this model: {getattr(shared.config, name)!r})"
        for name in _MEANING
        if getattr(config, name) != getattr(shared.config, name)
    ]
    try:
        blocks = config.adapted_blocks(depth)
    except ConfigError as error:
        raise CheckpointError(f"the checkpoint's settings do not fit this model: {error}") from error
    # Without a layer of the image model in between, projected and unprojected features have the same tensors.
    if not shared.record.anatomy.heads and (config.num_classes == 0) != (shared.config.num_classes == 0):
        differs.append(f"num_classes={config.num_classes} (this model: {shared.config.num_classes})")
    if blocks != shared.config.adapted_blocks(depth):
        differs.append(f"layers={config.layers!r} (this model: {shared.config.layers!r})")
    if differs:
        hint = ", or resize_frames=True to interpolate frames" if "num_frames" in differs[0] else ""
        _refuse(f"the adapters were saved with {', '.join(differs)}", strict, hint)


def _refuse(message: str, strict: bool, hint: str = "") -> None:
    if strict:
        raise CheckpointError(f"{message}; nothing was loaded. Pass strict=False to load what fits all the same{hint}")
    warnings.warn(message, stacklevel=4)


def _card(model: nn.Module, config: dict[str, Any]) -> str:
    count = count_parameters(model)
    base = config["base_model_name_or_path"] or "the base model"
    make = f'timm.create_model("{base}", pretrained=True)' if config["base_model_library"] == "timm" else "..."
    return f"""---
library_name: aim-adapters
pipeline_tag: video-classification
tags: [aim, adapter, video-classification]
---

# AIM adapters for {base}

{count.trainable:,} trained of {count.total:,} parameters; clips of {config["num_frames"]} frames
([AIM](https://arxiv.org/abs/2302.03024), trained with aim-adapters {config["aim_version"]}).

```python
import aim_adapters as aim
import timm

model = {make}  # {base}
aim.load_adapters(model, ".")  # wraps the model as adapter_config.json says
```
"""
