"""Limits on what a base model may take: its description may come from a file that somebody else wrote."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from aim_adapters.errors import CheckpointError
from aim_adapters.storage import parse_json

_MOST_MODULES = 4_000  # CLIP's largest image and text towers together have 1,200
_MOST_LAYERS = 1_000
MOST_PARAMETERS = 2**33  # DINOv3's largest has 6.7 billion
_SMALL = 2**24  # parameters that are always accepted: a classification layer may be in no file


def require_modest(path: Path) -> None:
    """Refuse the config of a base model with more layers than any has: timm makes lists of that length.

    Args:
        path: The file. If it does not exist, its library says so.

    Raises:
        CheckpointError: It has more layers, or is not JSON.
    """
    if not path.is_file():
        return
    items: list[tuple[str, Any]] = [("", parse_json(path.read_bytes(), str(path)))]
    for key, value in items:  # grows meanwhile
        if isinstance(value, dict):
            items += value.items()
        elif isinstance(value, list):
            items += [(key, item) for item in value]
        elif isinstance(value, (int, float)) and ("depth" in key or "layers" in key) and not value <= _MOST_LAYERS:
            raise CheckpointError(f"{path} asks for {key}={value!r:.40}, the most that is built is {_MOST_LAYERS:,}")


def most_parameters(weights: Iterable[Path]) -> int:
    """Return the number of parameters that a model with these weights may have.

    Args:
        weights: The files with its weights; one parameter takes a byte or more.
    """
    return sum(file.stat().st_size for file in weights) + _SMALL


@contextmanager
def limited(parameters: int = MOST_PARAMETERS) -> Iterator[None]:
    """Refuse to build a model of too many modules, or parameters in memory, in this thread inside the block.

    Args:
        parameters: The number of parameters that it may have.

    Raises:
        CheckpointError: The model has more, or more modules than any image transformer.
    """
    thread, modules, taken = threading.get_ident(), 0, 0

    def count_module(module: nn.Module, name: str, child: nn.Module | None) -> None:
        nonlocal modules
        modules += threading.get_ident() == thread
        if modules > _MOST_MODULES:
            raise CheckpointError(f"it asks for more than {_MOST_MODULES:,} modules, which no image transformer has")

    def count_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal taken
        if parameter is not None and threading.get_ident() == thread and not parameter.is_meta:
            taken += parameter.numel()
        if taken > parameters:
            raise CheckpointError(
                f"it asks for more than {parameters:,} parameters, which is more than its weights can fill"
            )

    hooks = [
        register_module_module_registration_hook(count_module),
        register_module_parameter_registration_hook(count_parameter),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
