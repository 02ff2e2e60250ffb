"""Say what the machine that runs this can do: whether Triton's kernels run, and on how much shared memory."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

# Where PyTorch does not tell a device's shared memory: the least that an Ampere or later, or an AMD GPU, has.
_LEAST_SHARED_MEMORY = 64 * 1024 if torch.version.hip is not None else 99 * 1024
_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # PyTorch 2.6 has the second only


def triton_missing(device: str) -> str | None:
    """Say why Triton's kernels cannot run on a type of device, or None.

    Looked up once, at the latest when a model is wrapped: ``torch.compile`` then finds the answer and need not trace
    how it came about.

    Args:
        device: ``"cuda"``, ``"cpu"``, another type, or ``"any"`` while it is not known.
    """
    if not _missing:
        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties()
            # PyTorch 2.6, and 2.11 for ROCm, do not have it.
            _shared_memory["cuda"] = getattr(properties, "shared_memory_per_block_optin", _LEAST_SHARED_MEMORY)
        _missing.update({each: _why_missing(each) for each in ("any", "cpu", "cuda")})
    return _missing.get(device, f"Triton's kernels need a GPU, got {device}")


_missing: dict[str, str | None] = {}
_shared_memory: dict[str, int] = {}


def _why_missing(device: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device == "cpu" or (device == "any" and interpreted):
        return None if interpreted else "Triton does not run on a CPU"
    if not torch.cuda.is_available():
        return f"Triton's kernels need a GPU, got {'none' if device == 'any' else device}"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return "its kernels need a GPU of compute capability 8.0 or more (Ampere)"
    return None if interpreted else _cannot_build()


def _cannot_build() -> str | None:
    """Say what Triton lacks to build what launches a kernel, or None; slim images and system Pythons often do."""
    if os.name != "posix":  # brought along elsewhere
        return None
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler, found neither gcc nor clang nor CC in the environment"
    header = Path(sysconfig.get_path("include", "posix_prefix")) / "Python.h"
    return None if header.is_file() else f"Triton needs Python's headers (python3-dev), {header} does not exist"


def shared_memory(device: str) -> int:
    """Return the bytes of shared memory that a kernel may use on a type of device; where kernels are interpreted, many.

    Args:
        device: ``"cuda"`` or another type.
    """
    triton_missing(device)
    return _shared_memory.get(device, 2**20)


def exporting() -> bool:
    """Tell whether the model is being exported, for a place that need not know our operators."""
    # Inside Dynamo some versions (2.11) say that every compilation is an export. So an export by Dynamo (strict=True)
    # is none here.
    return not torch.compiler.is_dynamo_compiling() and _exporting()
