"""The config of a checkpoint, and the recognition of files that are not one."""

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

_SETTINGS = frozenset(AIMConfig(num_frames=1).to_dict()) | {"attention"}  # written by earlier versions
# The other keys of a config, and the types of their values.
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
    "base_digest": (str, NoneType),
    "clip": (dict,),
}
# The keys of the clip contract, and the types of their values, or of the elements of lists.
_CLIP: dict[str, tuple[type, ...]] = {
    "frames": (int,),
    "stride": (int, NoneType),
    "size": (int,),
    "mean": (int, float),
    "std": (int, float),
    "labels": (str,),
}
_LISTS = ("size", "mean", "std", "labels")

# Files of other libraries, and what to do with them.
_OTHERS = {
    "adapter_model.bin": "a pickled peft adapter; a pickle is never read, save it as safetensors with peft",
    "adapter.safetensors": "an adapter of the adapters library; load it with that",
    "pytorch_adapter.bin": "an adapter of the adapters library; load it with that",
    "trained.safetensors": "a trained baseline; load it with aim_adapters.training.load_baseline",
    "model.safetensors": "a whole model; build it with its own library and load AIM adapters into it",
    "pytorch_model.bin": "a whole model; build it with its own library and load AIM adapters into it",
    "open_clip_model.safetensors": "a whole model; build it with open_clip and load AIM adapters into it",
}


class OpenCheckpoint(NamedTuple):
    """A checkpoint with a validated config and header, whose tensors can be read.

    Attributes:
        directory: The directory with its files.
        config: Its config.
        file: Its weights.
    """

    directory: Path
    config: dict[str, Any]
    file: WeightsFile

    def settings(self) -> AIMConfig:
        """Return the settings in the config.

        Raises:
            CheckpointError: The settings are invalid.
        """
        try:
            return AIMConfig.from_dict({key: self.config[key] for key in self.config if key in _SETTINGS})
        except ConfigError as error:
            raise CheckpointError(f"the config in {self.directory} is invalid: {error!s:.500}") from error


@contextmanager
def open_checkpoint(directory: Path, *, strict: bool = True) -> Iterator[OpenCheckpoint]:
    """Open a checkpoint's weights, and the config in their header, which is the one that they were saved with.

    Args:
        directory: The directory with the files.
        strict: Refuse unknown keys in the config, and a config file beside the weights that contradicts it; otherwise
            warn about them.

    Yields:
        The checkpoint, open inside the ``with`` block.

    Raises:
        CheckpointError: The files are missing, damaged, of another library, or of a later format; or ``strict``, and
            they contradict one another.
    """
    weights, config_file = directory / WEIGHTS_NAME, directory / CONFIG_NAME
    version = _version(config_file)
    separate_config = _read_config(config_file)
    if separate_config is not None:
        _require_ours(separate_config, str(config_file))
    if not _exists(weights):
        hint = next((f"; it holds {what}" for name, what in _OTHERS.items() if _exists(directory / name)), "")
        raise CheckpointError(f"{directory} holds no {WEIGHTS_NAME}; expected a directory made by save_adapters{hint}")
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
        # A save may have replaced both files since the first was read.
        if separate_config is not None and separate_config != config and version == _version(config_file):
            _refuse_contradiction(separate_config, config, config_file, strict=strict)
        yield OpenCheckpoint(directory, config, file)


def require_readable(config: Mapping[str, Any], metadata: Mapping[str, str], keys: Iterable[str]) -> None:
    """Refuse to write a checkpoint that `open_checkpoint` would refuse to read.

    Args:
        config: The config.
        metadata: The metadata in the header of the weights.
        keys: Keys of the tensors.

    Raises:
        CheckpointError: Config or header is too large, or a value has the wrong type.
        TypeError: JSON cannot hold a value.
    """
    _require_fields(parse_json(json.dumps(config, indent=2), CONFIG_NAME), CONFIG_NAME, strict=True)
    entry = "x" * 180 + "," * 8  # longer than the entry of any tensor in a header
    parse_json(json.dumps({**metadata, **dict.fromkeys(keys, entry)}), f"the header of {WEIGHTS_NAME}")


def _read_config(path: Path) -> dict[str, Any] | None:
    """Return the config beside the weights, or None if there is none."""
    try:
        return read_json(path) if _exists(path) else None
    except CheckpointError:
        if _exists(path):
            raise
        return None  # a save has just taken it away


def _refuse_contradiction(beside: Mapping[str, Any], config: Mapping[str, Any], path: Path, *, strict: bool) -> None:
    """Refuse a config file that contradicts the config inside the weights; keys that others have added may stay."""
    one, other = _flat(beside), _flat(config)
    differing = sorted(name for name, value in other.items() if one.get(name) != value)
    added = sorted(name for name in one.keys() - other.keys() if one[name] is not None)
    if not differing and not added:
        return
    message = (
        f"{path} differs from the config inside {WEIGHTS_NAME}, which is the one used, in {differing + added!s:.500}; "
        "what was edited there has no effect. Delete the file, or save the adapters again with what you want to change"
    )
    if strict and differing:
        raise CheckpointError(f"{message}. Or pass strict=False to load them all the same")
    warn(message)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the keys of the clip contract as ``clip.…``."""
    clip = config.get("clip")
    if not isinstance(clip, dict):
        return dict(config)
    others = {name: value for name, value in config.items() if name != "clip"}
    return {**others, **{f"clip.{name}": value for name, value in clip.items()}}


def _version(path: Path) -> tuple[int, int] | None:
    """Return what is another for every file that a save puts there, or None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # no permission to look into the directory
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
        if is_list and not all(type(element) in types for element in value):
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
    return " or ".join("null" if kind is NoneType else kind.__name__ for kind in types)
