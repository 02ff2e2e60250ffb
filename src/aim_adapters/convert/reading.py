"""The tensors of a reference checkpoint, read with no trust in its content."""

from __future__ import annotations

import os
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aim_adapters.errors import CheckpointError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# The errors that `torch.load` raises on damaged or hostile files.
_DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    MemoryError,
)


def read_tensors(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under the reference's keys, without prefixes such as ``backbone.``.

    Args:
        source: Path of a ``.pth`` file, or its content: a state dict, possibly under ``"state_dict"``.

    Returns:
        ``{"conv1.weight": ..., "cls_head.fc_cls.weight": ...}``: finite floating-point tensors and integer buffers,
        detached; on the CPU if they come from a file.

    Raises:
        CheckpointError: The file is missing, damaged or not readable without running code in it; or an entry is not a
            dense, finite tensor.
        TypeError: ``source`` is neither a path nor a mapping.
    """
    if not isinstance(source, (str, os.PathLike, Mapping)):
        raise TypeError(f"source must be a path or a state dict, got {type(source).__name__}")
    content = source if isinstance(source, Mapping) else _load(Path(source))
    where = "the state dict" if isinstance(source, Mapping) else str(Path(source))
    entries = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(entries, Mapping):
        raise CheckpointError(f"{where} must hold a state dict, got a {type(entries).__name__}")
    tensors: dict[str, Tensor] = {}
    for key, value in entries.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{where}: every key must be a string, got {key!r}")
        name = key.removeprefix("module.").removeprefix("backbone.")
        if name in tensors:
            raise CheckpointError(f"{where} holds {name!r} twice, once as {key!r}")
        tensors[name] = _plain(key, value)
    return tensors


def _load(path: Path) -> Any:
    """Load a file without running any code in it."""
    if not path.is_file():
        problem = "is a directory; load_adapters reads those" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {problem}; expected a .pth file of the reference")
    try:
        mapped = zipfile.is_zipfile(path)  # files from before PyTorch 1.6 are not zip files, and cannot be mapped
        if mapped and _compressed(path):
            raise zipfile.BadZipFile("its entries are compressed")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _DAMAGE as error:
        if names := _refused(path, error):
            raise CheckpointError(
                f"{path} holds objects besides its tensors ({', '.join(names[:5])}), which are not loaded, as a pickle "
                "can run any code. Where the file was made, save its tensors alone: torch.save({'state_dict': "
                "checkpoint['state_dict']}, path). Or allow those that you know to be harmless around this call: with "
                "torch.serialization.safe_globals([...])"
            ) from error
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0][:200]
        raise CheckpointError(
            f"{path} is damaged or was not made by torch.save: {type(error).__name__}: {reason}"
        ) from error


def _compressed(path: Path) -> bool:
    """Return whether a zip file has compressed entries: torch.save writes none, and they may unpack to any size."""
    with zipfile.ZipFile(path) as archive:
        return any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())


def _refused(path: Path, error: BaseException) -> list[str]:
    """Return the names of the objects that PyTorch refused to load."""
    if not isinstance(error, pickle.UnpicklingError):
        return []
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except _DAMAGE:  # it reads only the current format
        return re.findall(r"GLOBAL (\S+)", str(error))


def _plain(key: str, value: Any) -> Tensor:
    """Return an entry as a detached tensor, if all its values are stored and finite."""
    if type(value) not in (Tensor, nn.Parameter):
        raise CheckpointError(f"{key!r} must be a tensor, got a {type(value).__name__}")
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        raise CheckpointError(f"{key!r} must be a dense tensor with values, got {value.layout} on {value.device}")
    # A view with stride 0 can claim any shape for a few bytes.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(f"{key!r} claims the shape {list(value.shape)}, but fewer values are stored")
    if value.dtype not in FLOATS and (value.is_floating_point() or value.is_complex()):
        raise CheckpointError(f"{key!r} has dtype {value.dtype}, expected one of {', '.join(map(str, FLOATS))}")
    if value.dtype in FLOATS and not bool(torch.isfinite(value).all()):
        raise CheckpointError(f"{key!r} holds NaN or inf")
    tensor: Tensor = value.detach()
    return tensor
