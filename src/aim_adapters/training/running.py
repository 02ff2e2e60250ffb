"""How a run is carried out on the machine that is there: by which way of PyTorch, and in which precision."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from aim_adapters.arguments import require_choice
from aim_adapters.core import only_root
from aim_adapters.errors import ConfigError

WAYS = ("auto", "eager", "blocks", "graphs")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "fp8")
# Compiling takes about half a minute; so many steps win that back.
WORTH_COMPILING = 500


class Way(NamedTuple):
    """How steps run, and why."""

    name: str
    reason: str


def choose_way(asked: str, *, device: str, triton: bool, steps: int, sharding: str, wrapped: bool, ragged: bool) -> Way:
    """Choose how steps run.

    Args:
        asked: ``"auto"``, ``"eager"``, ``"blocks"`` (each block compiled) or ``"graphs"`` (compiled, replayed as CUDA
            graphs).
        device: Kind of the device.
        triton: Whether PyTorch's compiler can make kernels here.
        steps: Steps of the run.
        sharding: ``"ddp"`` or ``"fsdp2"``.
        wrapped: Whether the model is one of ours, which compiles whole.
        ragged: Whether batches may have different sizes.

    Raises:
        ConfigError: ``asked`` is none of these, or cannot be had.
    """
    require_choice("execution", asked, WAYS)
    if asked == "graphs" and (device != "cuda" or sharding == "fsdp2"):
        raise ConfigError(f"execution='graphs' needs a CUDA device and sharding='ddp', got {device} and {sharding!r}")
    if asked != "auto":
        return Way(asked, "asked for")
    if device != "cuda":
        return Way("eager", f"the fastest on a {device}, which has no CUDA graphs")
    if not triton:
        return Way("eager", "PyTorch's compiler has no Triton here")
    if sharding == "fsdp2":
        return Way("eager", "weights are sharded")
    if not wrapped:
        return Way("eager", "a baseline, which may not compile")
    if ragged:
        return Way("eager", "batches have different sizes")
    if steps < WORTH_COMPILING:
        return Way("eager", f"{steps} steps are too few to pay for compiling")
    return Way("graphs", "CUDA graphs: the GPU never waits for Python")


def prepare_way(model: nn.Module, way: Way) -> nn.Module:
    """Return the model to call in training.

    Args:
        model: The model.
        way: How steps run.
    """
    if way.name == "blocks":
        wrapped = only_root(model)
        for path, _ in wrapped.state.anatomy.blocks:
            wrapped.root.get_submodule(path).compile(fullgraph=True)
    if way.name == "graphs":
        torch._dynamo.config.optimize_ddp = False  # it would cut the one graph in pieces
        return torch.compile(model, fullgraph=True, dynamic=False, mode="reduce-overhead")  # type: ignore[return-value]
    return model


def choose_precision(asked: str, device: torch.device) -> str:
    """Choose the precision of products: ``"fp32"``, ``"bf16"``, ``"fp16"`` or ``"fp8"``.

    Args:
        asked: One of these, or ``"auto"``: the fastest that the device has and that needs no care.
        device: The device.

    Raises:
        ConfigError: ``asked`` is none of these, or the device does not have it.
    """
    require_choice("precision", asked, PRECISIONS)
    if asked == "auto":
        if device.type != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if asked == "fp8" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)):
        raise ConfigError("precision='fp8' needs a GPU with float8 products (compute capability 8.9); use 'auto'")
    if asked == "fp16" and device.type == "cpu":
        raise ConfigError("precision='fp16' needs a GPU; use 'fp32' or 'bf16' on a CPU")
    return asked
