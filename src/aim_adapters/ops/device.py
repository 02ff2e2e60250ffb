"""Capabilities of the machine: whether Triton's kernels can run, and how much memory they may use."""

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
    """Return why Triton's kernels cannot run on a type of device, or None if they can.

    Looked up once, at the latest when a model is wrapped, so that ``torch.compile`` reads the answer and does not trace
    the look-up.

    Args:
        device: ``"cuda"``, ``"cpu"``, another type, or ``"any"`` while it is not known.
    """
    if not _missing:
        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties()
            # PyTorch 2.6, and 2.11 for ROCm, do not have it.
            _shared_memory["cuda"] = getattr(properties, "shared_memory_per_block_optin", _LEAST_SHARED_MEMORY)
            _crowded["cuda"] = torch.version.hip is None and is_crowded(*torch.cuda.get_device_capability())
        _missing.update({kind: _why_missing(kind) for kind in ("any", "cpu", "cuda")})
        if None in _missing.values():
            _version["triton"] = _triton_version()
    return _missing.get(device, f"Triton's kernels need a GPU, got {device}")


_missing: dict[str, str | None] = {}
_shared_memory: dict[str, int] = {}
_crowded: dict[str, bool] = {}
_version: dict[str, tuple[int, ...]] = {}


def _why_missing(device: str) -> str | None:
    """Return why Triton's kernels cannot run on a type of device, or None if they can; looked up anew."""
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
    """Return why Triton cannot compile the C code that launches a kernel, or None if it can.

    Slim container images and system Pythons often lack a compiler or Python's headers.
    """
    if os.name != "posix":  # on Windows, Triton's package brings both
        return None
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler, found neither gcc nor clang nor CC in the environment"
    header = Path(sysconfig.get_path("include", "posix_prefix")) / "Python.h"
    return None if header.is_file() else f"Triton needs Python's headers (python3-dev), {header} does not exist"


def shared_memory(device: str) -> int:
    """Return the bytes of shared memory that a kernel may use on a type of device; plenty where it is interpreted.

    Args:
        device: ``"cuda"`` or another type.
    """
    triton_missing(device)
    return _shared_memory.get(device, 2**20)


def tensor_memory_crowded(device: str) -> bool:
    """Return whether kernels may fail for want of tensor memory, which Triton uses more of than it has to.

    Args:
        device: ``"cuda"`` or another type.
    """
    triton_missing(device)
    return _crowded.get(device, False)


def is_crowded(major: int, minor: int) -> bool:
    """Return whether Triton uses more tensor memory than it has to: before 3.8, on data center Blackwell.

    Args:
        major: Of the compute capability.
        minor: Of the compute capability.
    """
    return major in (10, 11) and () < _triton_version() < (3, 8)


def triton_before(major: int, minor: int) -> bool:
    """Return whether the Triton that could run kernels here is older than a version; False where none could.

    Args:
        major: Of the version.
        minor: Of the version.
    """
    triton_missing("any")
    return () < _version.get("triton", ()) < (major, minor)


def _triton_version() -> tuple[int, ...]:
    """Return Triton's major and minor version, or nothing if it is not installed."""
    if importlib.util.find_spec("triton") is None:
        return ()
    import triton  # not at the top: it may be missing

    return tuple(map(int, triton.__version__.split(".")[:2]))


def exporting() -> bool:
    """Return whether the model is being exported, to run where our operators may not be known."""
    # Inside Dynamo, PyTorch 2.11 for one says that every compilation is an export. So an export by Dynamo (strict=True)
    # does not count as one here.
    return not torch.compiler.is_dynamo_compiling() and (_exporting() or torch._C._get_tracing_state() is not None)
