"""Read, edit and refuse the files of a checkpoint."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import aim_adapters as aim
from aim_adapters.errors import CheckpointError
from aim_adapters.storage import CONFIG_NAME, WEIGHTS_NAME
from tests.backbones.cases import assert_same, snapshot

Edit = Callable[[dict[str, Any]], Any]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def config_of(directory: Path) -> dict[str, Any]:
    """Return what stands in the config beside the weights."""
    return json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))


def header(directory: Path) -> dict[str, str]:
    with safe_open(directory / WEIGHTS_NAME, framework="pt") as file:
        return file.metadata()


def rewrite(directory: Path, *, tensors: Edit | None = None, config: Edit | None = None, beside: bool = True) -> None:
    """Edit a checkpoint's tensors, and its config in the header and (``beside``) in the file."""
    state, metadata = load_file(directory / WEIGHTS_NAME), header(directory)
    fields = json.loads(metadata["aim_config"])
    if tensors is not None:
        tensors(state)
    if config is not None:
        config(fields)
        metadata["aim_config"] = json.dumps(fields)
        if beside:
            (directory / CONFIG_NAME).write_text(json.dumps(fields), encoding="utf-8")
    save_file(state, directory / WEIGHTS_NAME, metadata=metadata)


def assert_refused(
    model: nn.Module,
    directory: Path,
    match: str,
    *,
    error: type[Exception] = CheckpointError,
    **arguments: Any,
) -> None:
    """Check that loading raises and leaves the model as it was, wrapped or not."""
    before, was_wrapped = snapshot(model), aim.is_wrapped(model)
    with pytest.raises(error, match=match):
        aim.load_adapters(model, directory, **arguments)
    assert aim.is_wrapped(model) is was_wrapped
    assert_same(before, snapshot(model))


_watch_begun: list[bool] = []
_watched: list[list[str]] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    # Without a mode it is `os.open`, here as the opener of an `open` that was counted.
    if event == "open" and _watched and isinstance(arguments[0], (str, os.PathLike)) and arguments[1] is not None:
        for paths in _watched:
            paths.append(os.fspath(arguments[0]))


@contextmanager
def watch_opens(directory: Path) -> Iterator[Callable[[], Counter[str]]]:
    """Yield a function that says how often Python has opened each file of a directory since, whatever the call."""
    if not _watch_begun:
        sys.addaudithook(_note)  # which cannot be taken away again
        _watch_begun.append(True)
    paths: list[str] = []
    _watched.append(paths)
    try:
        yield lambda: Counter(Path(path).name for path in paths if Path(path).parent == directory)
    finally:
        _watched.remove(paths)
