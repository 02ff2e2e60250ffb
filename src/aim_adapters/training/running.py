"""How a run is carried out on the machine that is there: by which way of PyTorch, and in which precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aim_adapters.arguments import require_choice
from aim_adapters.core import fp8_missing, is_wrapped, only_root
from aim_adapters.errors import ConfigError
from aim_adapters.graphs import explain_graphs, graph, ungraph

WAYS = ("auto", "eager", "blocks", "compiled", "graphs")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "fp8")


class Way(NamedTuple):
    """How steps run, and why."""

    name: str
    reason: str


def choose_way(asked: str, *, device: str, sharding: str, wrapped: bool) -> Way:
    """Choose how steps run.

    Args:
        asked: ``"auto"``, ``"eager"``, ``"blocks"`` (each block compiled), ``"compiled"`` (the whole model) or
            ``"graphs"`` (replayed as CUDA graphs, without compiling).
        device: Kind of the device.
        sharding: ``"ddp"`` or ``"fsdp2"``.
        wrapped: Whether the model is one of ours, which compiles whole.

    Raises:
        ConfigError: ``asked`` is none of these, or cannot be had.
    """
    require_choice("execution", asked, WAYS)
    if asked == "graphs" and (device != "cuda" or sharding == "fsdp2"):
        raise ConfigError(f"execution='graphs' needs a CUDA device and sharding='ddp', got {device} and {sharding!r}")
    if asked in ("blocks", "graphs") and not wrapped:
        raise ConfigError(f"execution={asked!r} needs a wrapped model; pass 'eager' or 'compiled'")
    if asked != "auto":
        return Way(asked, "asked for")
    if device != "cuda":
        return Way("eager", f"the fastest on a {device}, which has no CUDA graphs")
    if sharding == "fsdp2":
        return Way("eager", "weights are sharded")
    if not wrapped:
        return Way("eager", "a baseline, which may not compile")
    return Way("graphs", "CUDA graphs: the GPU never waits for Python")


def compiled(model: nn.Module, way: Way) -> nn.Module:
    """Return the model to call in training, to be compiled at its first call.

    Args:
        model: The model.
        way: ``"blocks"`` or ``"compiled"``.
    """
    if way.name == "blocks":
        wrapped = only_root(model)
        _allow_versions(2 * len(wrapped.state.anatomy.blocks) + 8)
        for path, _ in wrapped.state.anatomy.blocks:
            wrapped.root.get_submodule(path).compile(fullgraph=True)
        return model
    torch._dynamo.config.optimize_ddp = False  # it would cut the one graph in pieces
    return torch.compile(model, fullgraph=True, dynamic=False)  # type: ignore[return-value]


def replayed(model: nn.Module, example: Tensor) -> str | None:
    """Let a model replay CUDA graphs; if it cannot, return why, and leave it as it was.

    Args:
        model: A wrapped model.
        example: A batch ``[B, T, C, H, W]``.
    """
    graph(model, example)
    reasons = [row.reason for row in explain_graphs(model) if row.reason is not None]
    if reasons:
        ungraph(model)
    return reasons[0] if reasons else None


@contextlib.contextmanager
def own_graphs(model: nn.Module) -> Iterator[None]:
    """Drop the CUDA graphs of a run at its end, and give back those that the caller has.

    Args:
        model: The model.
    """
    state = only_root(model).state if is_wrapped(model) else None
    if state is None:
        yield
        return
    before, state.graphs = state.graphs, None
    try:
        yield
    finally:
        state.graphs = before


def _allow_versions(count: int) -> None:
    """Let the compiler keep so many versions of a block: its rate of stochastic depth is a constant of each."""
    config: Any = torch._dynamo.config
    for name in ("recompile_limit", "cache_size_limit"):  # the second is the name in PyTorch 2.6
        if hasattr(config, name):
            setattr(config, name, max(getattr(config, name), count))


def base_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the type in which a model holds frozen weights, if that is less than float32; else None.

    Args:
        model: The model.
    """
    kinds = {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad}
    return next((dtype for dtype in (torch.bfloat16, torch.float16) if dtype in kinds), None)


def choose_precision(asked: str, device: torch.device, base: torch.dtype | None = None) -> str:
    """Choose the precision of products: ``"fp32"``, ``"bf16"``, ``"fp16"`` or ``"fp8"``.

    Args:
        asked: One of these, or ``"auto"``: the fastest that the device has and that needs no care.
        device: The device.
        base: Type of frozen weights, if `set_base_dtype` has changed it, which the products must have too.

    Raises:
        ConfigError: ``asked`` is none of these, or the device or the model does not have it.
    """
    require_choice("precision", asked, PRECISIONS)
    needed = {torch.bfloat16: ("bf16", "fp8"), torch.float16: ("fp16",), None: PRECISIONS}[base]
    if asked == "auto" and base is not None:
        asked = needed[0]
    if asked not in needed:
        raise ConfigError(f"the frozen weights are {base}, which needs precision={needed[0]!r}, got {asked!r}")
    if asked == "auto":
        if device.type != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if asked == "fp8":
        missing = fp8_missing() if device.type == "cuda" else f"float8 needs a CUDA device, got {device.type}"
        if missing is not None:
            raise ConfigError(f"precision='fp8' needs a GPU with float8 products; use 'auto': {missing}")
    if asked == "fp16" and device.type == "cpu":
        raise ConfigError("precision='fp16' needs a GPU; use 'fp32' or 'bf16' on a CPU")
    return asked
