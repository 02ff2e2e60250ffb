"""Load hostile files into models of every kind, and edit files without regard for what they hold."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.errors import CheckpointError
from aim_adapters.storage.files import CONFIG_NAME, WEIGHTS_NAME
from benchmarks.checks.fuzz_checkpoint import OUR_WARNINGS
from tests.backbones.cases import assert_same, snapshot
from tests.memory import at_most
from tests.tiny import base, wrapped

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")


def with_two() -> nn.Module:
    model = wrapped()
    aim.add_adapter(model, "second", aim.AIMConfig(num_frames=2, components=("joint",)))
    return model


STARTS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "unwrapped": (base, {}),
    "wrapped": (wrapped, {}),
    "beside": (with_two, {"name": "third"}),
}
STRICTNESS = pytest.mark.parametrize("strict", [True, False])
IN_ONE_DIRECTORY = settings(
    deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def load(start: str, directory: Path, **arguments: Any) -> dict[str, Tensor]:
    """Load into a fresh model and return the adapter; if that is refused, check that the model is as it was."""
    make, more = STARTS[start]
    model = make()
    next(model.parameters()).requires_grad_(False)
    before, was_wrapped = snapshot(model), aim.is_wrapped(model)
    try:
        aim.load_adapters(model, directory, **more, **arguments)
    except CheckpointError:
        assert aim.is_wrapped(model) is was_wrapped
        assert_same(before, snapshot(model))
        raise
    return aim.adapter_state_dict(model, **more)


def assert_refused(start: str, directory: Path, match: str, **arguments: Any) -> None:
    """Check that loading is refused at once, in few words, without the memory that the file or its config speaks of."""
    begin = time.process_time()
    with at_most(100), pytest.raises(CheckpointError, match=match) as caught:
        load(start, directory, **arguments)
    assert time.process_time() - begin < 2
    assert len(str(caught.value)) < 2000


@contextmanager
def only_our_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        ours = (*OUR_WARNINGS, ".* differs from the config", "temporal positions interpolated")
        warnings.filterwarnings("ignore", "|".join(ours), UserWarning)
        yield


def rewrite_header(directory: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit the header of the weights as JSON, leaving the data."""
    content = (directory / WEIGHTS_NAME).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    fields = json.loads(content[8:end])
    edit(fields)
    text = json.dumps(fields).encode()
    (directory / WEIGHTS_NAME).write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def inflate(directory: Path, shapes: dict[str, list[int]], **config: Any) -> int:
    """Give tensors other shapes, in header, config and size of the file, without writing what they would hold."""
    size = 0

    def edit(fields: dict[str, Any]) -> None:
        nonlocal size
        metadata = fields.pop("__metadata__")
        for key, entry in fields.items():
            entry["shape"] = shapes.get(key, entry["shape"])
            begin, size = size, size + 4 * torch.Size(entry["shape"]).numel()
            entry["data_offsets"] = [begin, size]
        metadata["aim_config"] = json.dumps({**json.loads(metadata["aim_config"]), **config})
        fields["__metadata__"] = metadata

    (directory / CONFIG_NAME).unlink()
    rewrite_header(directory, edit)
    start = int.from_bytes((directory / WEIGHTS_NAME).read_bytes()[:8], "little") + 8
    os.truncate(directory / WEIGHTS_NAME, start + size)
    return size
