"""Read the tensors of a reference checkpoint, and trust nothing in it."""

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

# Whatever `torch.load` raises on damaged or hostile files.
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
    """Return the tensors of a checkpoint under the reference's keys, without the prefixes of its wrappers.

    Args:
        source: Path of a ``.pth`` file, or what it holds: the state dict, bare or under ``"state_dict"``.

    Returns:
        ``{"conv1.weight": ..., "cls_head.fc_cls.weight": ...}``: finite floating-point tensors, and integer buffers.

    Raises:
        CheckpointError: The file is missing, damaged or not readable without running code; or an entry is not a
            plain, finite tensor.
        TypeError: ``source`` is neither a path nor a mapping.
    """
    if not isinstance(source, (str, os.PathLike, Mapping)):
        raise TypeError(f"source must be a path or a state dict, got {type(source).__name__}")
    content = source if isinstance(source, Mapping) else _load(Path(source))
    where = "the state dict" if isinstance(source, Mapping) else str(Path(source))
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{where} must hold a state dict, got a {type(state).__name__}")
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
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
        what = "is a directory; load_adapters reads those" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {what}; expected a .pth file of the reference")
    try:
        mapped = zipfile.is_zipfile(path)  # the format before PyTorch 1.6 is no zip file and cannot be mapped
        if mapped and _compressed(path):
            raise zipfile.BadZipFile("its entries are compressed")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _DAMAGE as error:
        if names := _refused(path, error):
            raise CheckpointError(
                f"{path} holds objects beside its tensors ({', '.join(names[:5])}), which are not loaded, as a pickle "
                "can run any code. Where the file was made, save its tensors alone: torch.save({'state_dict': "
                "checkpoint['state_dict']}, path). Or allow those that you know to be harmless around this call: with "
                "torch.serialization.safe_globals([...])"
            ) from error
        said = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0][:200]
        raise CheckpointError(
            f"{path} is damaged or was not made by torch.save: {type(error).__name__}: {said}"
        ) from error


def _compressed(path: Path) -> bool:
    """Tell whether a few bytes may unpack to many, in a way torch.save never writes."""
    with zipfile.ZipFile(path) as archive:
        return any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())


def _refused(path: Path, error: BaseException) -> list[str]:
    """Return the names of what PyTorch refused to load."""
    if not isinstance(error, pickle.UnpicklingError):
        return []
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except _DAMAGE:  # it reads the present format only
        return re.findall(r"GLOBAL (\S+)", str(error))


def _plain(key: str, value: Any) -> Tensor:
    """Return a tensor that is what it seems: all its values are stored, and finite."""
    if type(value) not in (Tensor, nn.Parameter):
        raise CheckpointError(f"{key!r} must be a tensor, got a {type(value).__name__}")
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        raise CheckpointError(f"{key!r} must be a dense tensor with values, got {value.layout} on {value.device}")
    # A view with stride 0 claims any shape for a few bytes.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(f"{key!r} claims the shape {list(value.shape)}, but fewer values are stored")
    if value.dtype not in FLOATS and (value.is_floating_point() or value.is_complex()):
        raise CheckpointError(f"{key!r} has dtype {value.dtype}, expected one of {', '.join(map(str, FLOATS))}")
    if value.dtype in FLOATS and not bool(torch.isfinite(value).all()):
        raise CheckpointError(f"{key!r} holds NaN or inf")
    tensor: Tensor = value.detach()
    return tensor
