"""The command that says what a bug report needs: versions, the machine, and the environment that matters."""

from __future__ import annotations

import importlib
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from aim_adapters.cli.output import Debug, Json, as_lines, command
from aim_adapters.version import __version__

_PACKAGES = (
    "torch", "torchvision", "triton", "timm", "open_clip_torch", "transformers", "accelerate", "av", "torchcodec",
    "huggingface_hub", "safetensors", "einops", "peft", "torchao", "lightning", "numpy", "typer", "rich",
)  # fmt: skip

# No variable that holds a token is among them.
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF", "PYTORCH_ENABLE_MPS_FALLBACK", "TORCH_HOME", "TORCH_LOGS", "TORCHDYNAMO_DISABLE",
    "TORCHINDUCTOR_CACHE_DIR", "TRITON_INTERPRET", "TRITON_CACHE_DIR", "NVIDIA_TF32_OVERRIDE", "NCCL_DEBUG",
    "NCCL_P2P_DISABLE", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "http_proxy", "https_proxy", "all_proxy", "no_proxy", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CC",
    "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TERM", "COLUMNS", "NO_COLOR",
)  # fmt: skip


def env(as_json: Json = False, debug: Debug = False) -> None:
    """Show what a bug report needs.

    That is versions, the machine and its settings. No token is shown; your home directory becomes ~, and passwords in
    addresses are left out.
    """
    with command(as_json=as_json, debug=debug) as output:
        facts: dict[str, Any] = {
            "aim-adapters": __version__,
            "Python": f"{platform.python_version()} ({platform.python_implementation()})",
            "platform": platform.platform(),
            "processor": f"{platform.machine()}, {os.cpu_count()} cores",
            **_torch_facts(),
            "FFmpeg": _ffmpeg(),
            "packages": {name: _version(name) for name in _PACKAGES},
            "environment": {name: _harmless(os.environ[name]) for name in _VARIABLES if name in os.environ},
        }
        missing = ", ".join(name for name, found in facts["packages"].items() if found is None)
        shown = {
            **{name: value for name, value in facts.items() if not isinstance(value, dict)},
            **{name: found for name, found in facts["packages"].items() if found is not None},
            "not installed": missing,
            **facts["environment"],
        }
        shown["GPUs"] = ", ".join(facts["GPUs"]) or "none"
        output.result(facts, as_lines(shown))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torch_facts() -> dict[str, Any]:
    """Return what PyTorch says about the machine; a PyTorch that cannot be imported is a fact, too."""
    try:
        import torch

        from aim_adapters.ops.device import triton_missing
    except (ImportError, OSError, RuntimeError) as error:
        return {"CUDA": f"unknown: PyTorch cannot be imported ({_harmless(str(error))})", "GPUs": [], "kernels": "none"}
    built = f"ROCm {torch.version.hip}" if torch.version.hip else torch.version.cuda
    there = torch.cuda.is_available()
    names = []
    for index in range(torch.cuda.device_count() if there else 0):
        about = torch.cuda.get_device_properties(index)
        names.append(f"{about.name} ({about.total_memory / 2**30:.0f} GiB, {about.major}.{about.minor})")
    if torch.backends.mps.is_available():
        names.append("Apple MPS")
    return {
        "CUDA": f"{built or 'not in this build of PyTorch'}" + ("" if there or not built else ", no GPU is usable"),
        "GPUs": names,
        "threads": torch.get_num_threads(),
        "kernels": triton_missing("any") or "Triton's run here",
    }


def _ffmpeg() -> str:
    """Return the versions of FFmpeg that the libraries for videos bring or find."""
    found = []
    for name in ("av", "torchcodec"):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError, RuntimeError) as error:
            found.append(f"{name}: cannot be imported ({_harmless(str(error).strip().partition(chr(10))[0])})")
            continue
        number = getattr(module, "ffmpeg_version_info", getattr(module, "ffmpeg_major_version", "unknown"))
        found.append(f"{number} ({name})")
    return ", ".join(found) or "none: neither av nor torchcodec is installed"


def _harmless(value: str) -> str:
    """Return a value without the user's home directory, and without passwords and queries in addresses."""
    value = re.sub(r"//[^/@\s]*@", "//…@", value)
    value = re.sub(r"(://[^\s?]*)\?\S*", r"\1?…", value)
    try:
        home = str(Path.home())
    except RuntimeError:  # in a container, a user may have none
        return value
    return re.sub(rf"{re.escape(home)}(?=[/\\:;,\s]|$)", "~", value) if len(home) > 1 else value
