"""The files of a base model, fetched, and the arguments that a config gives for it, checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from aim_adapters.backbones.descriptor import BaseRequest
from aim_adapters.errors import CheckpointError, ConfigError
from aim_adapters.storage import StoredTensor, download, explained, parse_json, read_torch_file, require_inner_path

Kind = Literal["classes", "channels", "size", "flag", "word"]


def fetch(request: BaseRequest, repo_id: str, *filenames: str) -> Path:
    """Fetch a file from a repository on the Hub, and return its path.

    Args:
        request: Gives the revision, and how files may be fetched.
        repo_id: ``user/name``.
        filenames: Names of the file, in order of preference: the first that the repository holds is fetched.

    Raises:
        CheckpointError: There is no such repository, revision or file, or it cannot be fetched.
    """
    from huggingface_hub.errors import EntryNotFoundError

    cache_dir, last = None if request.cache_dir is None else Path(request.cache_dir).expanduser(), filenames[-1]
    with explained(repo_id, filenames[0], request.revision):
        for filename in filenames:
            with suppress(*[EntryNotFoundError] if filename != last else []):
                path = download(
                    repo_id,
                    filename,
                    revision=request.revision,
                    cache_dir=cache_dir,
                    token=request.token,
                    local_files_only=request.local_files_only,
                    force_download=request.force_download,
                )
                break
    return path


def find_weights(request: BaseRequest, repo_id: str, name: str) -> list[Path]:
    """Return the safetensors files of a model, one or several, in its directory or fetched from its repository.

    Args:
        request: Gives the directory, or the revision and how files may be fetched.
        repo_id: ``user/name``, if there is no directory.
        name: Name of the file without its suffix.

    Raises:
        ConfigError: The directory has no such file.
        CheckpointError: There is no such repository, revision or file, it cannot be fetched, or the index of several
            files is damaged.
    """
    single, index = f"{name}.safetensors", f"{name}.safetensors.index.json"
    if request.directory is None:
        path = fetch(request, repo_id, single, index)
    else:
        path = next((path for file in (single, index) if (path := request.directory / file).is_file()), Path())
        if not path.name:
            raise ConfigError(f"{request.directory} holds no {single}; save it with safe_serialization=True")
    if path.suffix == ".safetensors":
        return [path]
    parts = parse_json(path.read_bytes(), str(path)).get("weight_map")
    # Anything else would be read as a pickle.
    if not isinstance(parts, dict) or not all(
        isinstance(p, str) and p.endswith(".safetensors") for p in parts.values()
    ):
        raise CheckpointError(f"{path} must name safetensors files in its weight_map")
    for part in (names := sorted(set(parts.values()))):
        require_inner_path("a file in weight_map", part)
    return [request.directory / part if request.directory else fetch(request, repo_id, part) for part in names]


class StateDict(NamedTuple):
    """Tensors, and the file they were read from.

    Attributes:
        tensors: The tensors by name.
        file: The file.
    """

    tensors: dict[str, Tensor]
    file: Path


def fetch_state_dict(request: BaseRequest, url: str) -> StateDict:
    """Fetch a state dict from an address that a library gives. It is read without running any code in it.

    Args:
        request: Says how files may be fetched.
        url: The address; the file name contains the start of its hash.

    Returns:
        The tensors, on the CPU.

    Raises:
        FileNotFoundError: ``local_files_only``, and the file was not fetched before.
        CheckpointError: It cannot be read, or holds anything else than tensors.
        As torch: it cannot be fetched.
    """
    folder = Path(request.cache_dir or Path(torch.hub.get_dir()) / "checkpoints")
    file = folder / url.rpartition("/")[2]
    if request.local_files_only and not file.is_file():
        raise FileNotFoundError(f"{file} does not exist, and local_files_only=True forbids to fetch {url}")
    if request.force_download:
        file.unlink(missing_ok=True)
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        start = re.search(r"-([a-f0-9]+)\.", file.name)  # of its hash
        torch.hub.download_url_to_file(url, str(file), start and start[1], progress=False)
    content = read_torch_file(file)
    if not isinstance(content, dict) or not all(isinstance(value, StoredTensor) for value in content.values()):
        raise CheckpointError(f"{file} holds no state dict")
    return StateDict({key: value.load().clone() for key, value in content.items()}, file)


def checked_arguments(request: BaseRequest, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """Return the arguments of a request after checking them: they may come from a file that somebody else wrote.

    Args:
        request: The request.
        kinds: The arguments that may appear, and the kind of each: a number of classes or channels, an image size in
            pixels (one number or two), a flag, a word.

    Returns:
        The arguments, with tuples for lists.

    Raises:
        ConfigError: An argument is unknown, or not of its kind.
    """
    checked = {}
    for name, value in request.arguments.items():
        kind = kinds.get(name)
        if kind is None:
            raise ConfigError(f"unknown base model argument {name!r}; expected some of {', '.join(kinds)}")
        if not _FITS[kind](value):
            raise ConfigError(f"base model argument {name}={value!r} is not a {kind} that an image model can have")
        checked[name] = tuple(value) if isinstance(value, list) else value
    return checked


def repository(name: str) -> str | None:
    """Return the repository on the Hub to fetch a model from: ``hf-hub:user/name`` or ``user/name``; else None."""
    name = name.removeprefix("hf-hub:")
    return name if "/" in name else None


def _is_count(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, (list, tuple)) else (value, value)
    return len(sides) == 2 and all(_is_count(side, 1, 4096) for side in sides)


# The bounds keep a hostile config from asking for more memory than any real model takes.
_FITS: dict[Kind, Callable[[Any], bool]] = {
    "classes": lambda value: _is_count(value, 0, 1 << 17),
    "channels": lambda value: _is_count(value, 1, 64),
    "size": _is_size,
    "flag": lambda value: isinstance(value, bool),
    "word": lambda value: isinstance(value, str) and re.fullmatch(r"\w{0,64}", value, re.ASCII) is not None,
}
