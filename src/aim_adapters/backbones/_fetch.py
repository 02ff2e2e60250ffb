"""Fetch the files of a base model, and check what a config says about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch

from aim_adapters.backbones.descriptor import BaseRequest
from aim_adapters.errors import ConfigError
from aim_adapters.storage import explained

Kind = Literal["classes", "channels", "size", "flag", "word"]


def fetch(request: BaseRequest, repo_id: str, *filenames: str) -> Path:
    """Return the path of the first of several files that a repository on the Hub holds.

    Args:
        request: Says which revision, and where and how it may be fetched.
        repo_id: ``user/name``.
        filenames: In order of preference.

    Raises:
        CheckpointError: There is no such repository, revision or file, or it cannot be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    cache_dir, last = None if request.cache_dir is None else Path(request.cache_dir).expanduser(), filenames[-1]
    with explained(repo_id, last, request.revision):
        for filename in filenames:
            with suppress(*[EntryNotFoundError] if filename != last else []):
                path = hf_hub_download(
                    repo_id,
                    filename,
                    revision=request.revision,
                    cache_dir=cache_dir,
                    token=request.token,
                    local_files_only=request.local_files_only,
                    force_download=request.force_download,
                )
                break
    return Path(path)


def fetch_state(request: BaseRequest, url: str) -> dict[str, Any]:
    """Return the state dict behind an address that a library names itself. It is read without executing anything.

    Args:
        request: Says where and how it may be fetched.
        url: The address, with the start of its hash in its name.

    Raises:
        FileNotFoundError: ``local_files_only``, and it was not fetched before.
        As torch: it cannot be fetched or read.
    """
    folder = Path(request.cache_dir or Path(torch.hub.get_dir()) / "checkpoints")
    file = folder / url.rpartition("/")[2]
    if request.local_files_only and not file.is_file():
        raise FileNotFoundError(f"{file} does not exist, and local_files_only=True forbids to fetch {url}")
    if request.force_download:
        file.unlink(missing_ok=True)
    state: dict[str, Any] = torch.hub.load_state_dict_from_url(
        url, model_dir=str(folder), map_location="cpu", progress=False, check_hash=True, weights_only=True
    )
    return state


def checked_arguments(request: BaseRequest, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """Return the arguments of a request, which may come from a file that somebody else wrote.

    Args:
        request: The request.
        kinds: What each argument that may appear is: a number of classes, a number of channels, an image size in
            pixels (one number or two), a truth value, a word.

    Raises:
        ConfigError: An argument is unknown, or not of its kind.
    """
    checked = {}
    for name, value in request.arguments.items():
        kind = kinds.get(name)
        if kind is None:
            raise ConfigError(f"unknown base model argument {name!r}; expected some of {', '.join(kinds)}")
        if not _FITS[kind](value):
            raise ConfigError(f"base model argument {name}={value!r} is no {kind} that an image model has")
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
