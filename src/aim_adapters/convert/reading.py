"""The tensors of a reference checkpoint, read with no trust in its content."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aim_adapters.arguments import require_path
from aim_adapters.errors import CheckpointError
from aim_adapters.storage import StoredTensor, file_mode, read_torch_file

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_tensors(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under the reference's keys, without prefixes such as ``backbone.``.

    Their values are not looked at: `require_finite` does, once keys and shapes are known to be right.

    Args:
        source: Path of a ``.pth`` file, or its content: a state dict, possibly under ``"state_dict"``.

    Returns:
        ``{"conv1.weight": ..., "cls_head.fc_cls.weight": ...}``: floating-point tensors and integer buffers, detached;
        on the CPU if they come from a file.

    Raises:
        CheckpointError: The file is missing, damaged or not readable without running code in it; or an entry is not a
            dense tensor with values.
        TypeError: ``source`` is neither a path nor a mapping.
    """
    path = None if isinstance(source, Mapping) else require_path("source", source, expected="a path or a state dict")
    content = source if path is None else _load(path)
    where = "source" if path is None else f"{path!s:.500}"
    entries = content["state_dict"] if isinstance(content, Mapping) and "state_dict" in content else content
    if not isinstance(entries, Mapping):
        raise CheckpointError(f"{where} must hold a state dict, got a {type(entries).__name__}")
    tensors: dict[str, Tensor] = {}
    for key in entries:  # not .items(), which an attribute of the mapping may hide
        if not isinstance(key, str):
            raise CheckpointError(f"{where}: every key must be a string, got {key!r:.100}")
        name = key.removeprefix("module.").removeprefix("backbone.")
        if name in tensors:
            raise CheckpointError(f"{where} holds {name!r:.100} twice, once as {key!r:.100}")
        tensors[name] = _plain(key, entries[key])
    return tensors


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that hold NaN or infinities.

    Args:
        tensors: Tensors by name.

    Raises:
        CheckpointError: One holds NaN or infinities.
    """
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{name!r:.100} holds NaN or inf")


def _load(path: Path) -> Any:
    """Load a file without running any code in it."""
    mode = file_mode(path)
    if not stat.S_ISREG(mode):
        problem = "is a directory; load_adapters reads those" if stat.S_ISDIR(mode) else "does not exist"
        if mode and not stat.S_ISDIR(mode):
            problem = "is no regular file"
        raise CheckpointError(f"{path!s:.500} {problem}; expected a .pth file of the reference")
    return read_torch_file(path)


def _plain(key: str, value: Any) -> Tensor:
    """Return an entry as a detached tensor, if all its values are stored."""
    if isinstance(value, StoredTensor):
        value = value.load()
    elif type(value) not in (Tensor, nn.Parameter):
        raise CheckpointError(f"{key!r:.100} must be a tensor, got a {type(value).__name__}")
    elif value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_nested:
        kind = "a nested one" if value.is_nested else value.layout
        raise CheckpointError(f"{key!r:.100} must be a dense tensor with values, got {kind} on {value.device}")
    # A view with stride 0 can claim any shape for a few bytes.
    elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(f"{key!r:.100} claims the shape {list(value.shape)}, but fewer values are stored")
    if value.dtype not in FLOATS and (value.is_floating_point() or value.is_complex()):
        expected = ", ".join(map(str, FLOATS))
        raise CheckpointError(f"{key!r:.100} has dtype {value.dtype}, expected one of {expected}")
    tensor: Tensor = value.detach()
    return tensor
