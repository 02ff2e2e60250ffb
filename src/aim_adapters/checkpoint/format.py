"""What the config of a checkpoint holds, and how files that are no checkpoint are recognized."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from aim_adapters.config import AIMConfig
from aim_adapters.errors import CheckpointError, ConfigError, warn
from aim_adapters.storage import CONFIG_NAME, WEIGHTS_NAME, WeightsFile, open_weights, parse_json, read_json

FORMAT_VERSION = 1

_SETTINGS = frozenset(AIMConfig(num_frames=1).to_dict()) | {"attention"}  # which earlier versions wrote
# What a config holds beside the settings, and of which types.
_FIELDS: dict[str, tuple[type, ...]] = {
    "library_name": (str,),
    "peft_type": (str,),
    "format_version": (int,),
    "aim_version": (str,),
    "base_model_name_or_path": (str, NoneType),
    "base_model_library": (str,),
    "base_model_revision": (str, NoneType),
    "base_model_arguments": (dict,),
    "base_fingerprint": (str,),
    "clip": (dict,),
}
# The clip contract, and of which types its values, or the elements of its lists, are.
_CLIP: dict[str, tuple[type, ...]] = {
    "frames": (int,),
    "stride": (int, NoneType),
    "size": (int,),
    "mean": (int, float),
    "std": (int, float),
    "labels": (str,),
}
_LISTS = ("size", "mean", "std", "labels")

# Files that tell what a directory without our weights holds.
_OTHERS = {
    "adapter_model.bin": "a pickled peft adapter; a pickle is never read, save it as safetensors with peft",
    "adapter.safetensors": "an adapter of the adapters library; load it with that",
    "pytorch_adapter.bin": "an adapter of the adapters library; load it with that",
    "model.safetensors": "a whole model; build it with its own library and load AIM adapters into it",
    "pytorch_model.bin": "a whole model; build it with its own library and load AIM adapters into it",
    "open_clip_model.safetensors": "a whole model; build it with open_clip and load AIM adapters into it",
}


class OpenCheckpoint(NamedTuple):
    """A checkpoint whose config and header have been validated, and whose tensors can be read.

    Attributes:
        directory: Where the files are.
        config: What the checkpoint says of itself.
        file: Its weights.
    """

    directory: Path
    config: dict[str, Any]
    file: WeightsFile

    def settings(self) -> AIMConfig:
        """Return the settings in the config.

        Raises:
            CheckpointError: They are invalid.
        """
        try:
            return AIMConfig.from_dict({key: self.config[key] for key in self.config if key in _SETTINGS})
        except ConfigError as error:
            raise CheckpointError(f"the config in {self.directory} is invalid: {error!s:.500}") from error


@contextmanager
def open_checkpoint(directory: Path, *, strict: bool = True) -> Iterator[OpenCheckpoint]:
    """Open a checkpoint's weights, with the config in their header, which is what they were saved with.

    Args:
        directory: Where the files are.
        strict: Refuse config keys that are not known; otherwise warn of them.

    Raises:
        CheckpointError: The files are missing, damaged, of another kind, or of a later format.
    """
    weights, config_file = directory / WEIGHTS_NAME, directory / CONFIG_NAME
    beside = read_json(config_file) if _exists(config_file) else None
    if beside is not None:
        _require_ours(beside, str(config_file))
    if not _exists(weights):
        found = next((f"; it holds {what}" for name, what in _OTHERS.items() if _exists(directory / name)), "")
        raise CheckpointError(f"{directory} holds no {WEIGHTS_NAME}; expected a directory made by save_adapters{found}")
    with open_weights(weights) as file:
        text = file.metadata.get("aim_config")
        if text is None:
            peft = any(key.startswith("base_model.model.") or ".lora_" in key for key in file.shapes)
            what = "it holds a peft adapter" if peft else "it was not made by save_adapters"
            raise CheckpointError(f"{weights} has no AIM config in its header; {what}")
        where = f"the config in {weights}"
        config = parse_json(text, where)
        _require_ours(config, where)
        _require_fields(config, where, strict=strict)
        if beside is not None and beside != config:
            warn(f"{config_file} differs from the config inside {WEIGHTS_NAME}, which is the one used")
        yield OpenCheckpoint(directory, config, file)


def require_readable(config: Mapping[str, Any], metadata: Mapping[str, str], keys: Iterable[str]) -> None:
    """Refuse to write what `open_checkpoint` would refuse to read again.

    Args:
        config: The config.
        metadata: What goes into the header of the weights.
        keys: The tensors' keys.

    Raises:
        CheckpointError: It is too large, or something in it is not of its type.
    """
    _require_fields(parse_json(json.dumps(config, indent=2), CONFIG_NAME), CONFIG_NAME, strict=True)
    entry = "x" * 180 + "," * 8  # more than stands in a header for a tensor
    parse_json(json.dumps({**metadata, **dict.fromkeys(keys, entry)}), f"the header of {WEIGHTS_NAME}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # the directory may not be looked into
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _require_ours(config: Mapping[str, Any], where: str) -> None:
    kind, version = config.get("peft_type"), config.get("format_version")
    if kind != "AIM":
        hint = ""
        if isinstance(kind, str):
            hint = "; load it with peft.PeftModel.from_pretrained"
        elif "config" in config and "model_class" in config:
            hint = "; it is an adapter of the adapters library, load it with that"
        raise CheckpointError(f"{where} describes an adapter of type {kind!r:.80}, expected 'AIM'{hint}")
    if type(version) is not int or version != FORMAT_VERSION:
        later = type(version) is int and version > FORMAT_VERSION
        fix = f"update aim-adapters (it was written by {config.get('aim_version')!s:.80})" if later else "save it again"
        raise CheckpointError(f"{where} has format version {version!r:.80}, this library reads {FORMAT_VERSION}; {fix}")


def _require_fields(config: Mapping[str, Any], where: str, *, strict: bool) -> None:
    for name, types in _FIELDS.items():
        if name in config and type(config[name]) not in types:
            raise CheckpointError(f"{where} has {name}={config[name]!r:.80}, expected {_names(types)}")
    clip = config.get("clip", {})
    for name, types in _CLIP.items():
        value = clip.get(name)
        is_list = name in _LISTS and value is not None
        if is_list and not isinstance(value, list):
            raise CheckpointError(f"{where} has clip.{name}={value!r:.80}, expected a list or null")
        if is_list and not all(type(each) in types for each in value):
            raise CheckpointError(f"{where} has clip.{name}={value!r:.80}, expected a list of {_names(types)}")
        if name not in _LISTS and name in clip and type(value) not in types:
            raise CheckpointError(f"{where} has clip.{name}={value!r:.80}, expected {_names(types)}")
    unknown = sorted({*config} - _SETTINGS - {*_FIELDS}) + sorted(f"clip.{name}" for name in {*clip} - {*_CLIP})
    if unknown:
        message = f"{where} has unknown keys {unknown!s:.500}; they may change what the adapters mean"
        if strict:
            raise CheckpointError(f"{message}. Update aim-adapters, or pass strict=False to load it all the same")
        warn(message)


def _names(types: tuple[type, ...]) -> str:
    return " or ".join("null" if each is NoneType else each.__name__ for each in types)
