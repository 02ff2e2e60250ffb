"""Choose how a wrapped model runs, and explain it; none of it changes what is computed, nor is it saved."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aim_adapters.arguments import require_choice, shown
from aim_adapters.config import ATTENTION_CHOICES, Attention, FrozenPrecision, Fused, Memory
from aim_adapters.core import (
    BlockState,
    ByModules,
    compute_dtype,
    fp8_missing,
    fused_branches,
    only_root,
    own_parameters,
    place_of,
)
from aim_adapters.errors import ConfigError
from aim_adapters.ops import temporal_conv
from aim_adapters.ops.temporal_attention import case_of, choose
from aim_adapters.table import BlockTable

_BASE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class BlockAttention(NamedTuple):
    """How one block attends over time.

    Attributes:
        block: Index of the block.
        implementation: ``"triton"``, ``"sdpa"``, ``"eager"``, or ``"-"`` where it does not attend over time.
        reason: Why.
    """

    block: int
    implementation: str
    reason: str


class BlockExecution(NamedTuple):
    """How one block runs.

    Attributes:
        block: Index of the block.
        temporal: ``"fused"``, or ``"fused, fp8"``; ``"-"`` where there is none; or why this branch runs as the image
            model's modules. Where there is a temporal convolution, ``"convolution, triton"``, or ``"convolution,
            eager"`` and why, in its place or in front of it. Of a block without adapters, ``"fused, no adapter"``.
        spatial: The same.
        mlp: The same.
    """

    block: int
    temporal: str
    spatial: str
    mlp: str


def set_attention(model: nn.Module, attention: Attention) -> None:
    """Choose the implementation of temporal attention. All of them compute the same, to rounding.

    A temporal convolution has the same names, and runs as ``"eager"`` for ``"sdpa"``: by PyTorch's operators, too. It
    holds for every adapter of the model. A compiled model compiles once more.

    Args:
        model: A wrapped model.
        attention: ``"auto"``, which falls back where a kernel does not fit; or ``"triton"``, ``"sdpa"`` or ``"eager"``,
            which raise `UnsupportedKernelError` there.

    Raises:
        ConfigError: The name is unknown.
        UnsupportedKernelError: The named implementation cannot run here.
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    state = only_root(model).state
    require_choice("attention", attention, ATTENTION_CHOICES)
    choose(attention)
    state.execution = dataclasses.replace(state.execution, attention=attention)


def explain_attention(model: nn.Module) -> BlockTable[BlockAttention]:
    """Return which implementation of temporal attention each block runs, and why.

    It holds for the weights' device and dtype, or the dtype of an autocast that is on while this is called.

    Args:
        model: A wrapped model.

    Returns:
        A list with one row for each block, which shows itself as a table in a terminal and in a notebook.

    Raises:
        UnsupportedKernelError: An implementation was asked for by name that cannot compute this.
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    _, root, state = only_root(model)
    anatomy, rows = state.anatomy, BlockTable[BlockAttention]()
    for index, ((path, block_anatomy), width) in enumerate(zip(anatomy.blocks, anatomy.block_widths, strict=True)):
        block = root.get_submodule(path)
        container = block.aim
        assert isinstance(container, BlockState)
        if container.temporal is None:
            rows.append(BlockAttention(index, "-", "does not attend over time"))
            continue
        place, heads = place_of(block), block_anatomy.heads(getattr(block, block_anatomy.attention))
        device, dtype = place["device"].type, place["dtype"]
        if dtype != torch.float64 and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        biased = container.temporal_bias is not None
        case = case_of(device, dtype, width // heads, state.num_frames, biased=biased)
        choice = choose(state.execution.attention, case)
        rows.append(BlockAttention(index, *choice))
    return rows


def set_execution(
    model: nn.Module,
    *,
    fused: Fused | None = None,
    memory: Memory | None = None,
    frozen_precision: FrozenPrecision | None = None,
) -> None:
    """Choose how adapted blocks run. All ways compute the same, to rounding, and nothing of it is saved.

    A fused branch calls the frozen layers' weights, not the layers: hooks on them would not run, so a layer with hooks
    makes its branch run as modules. Hooks on all modules of a process at once
    (``torch.nn.modules.module.register_module_forward_hook``) do not; for them choose ``fused=False``. It holds for
    every adapter of the model. A compiled model compiles once more.

    Args:
        model: A wrapped model.
        fused: ``"auto"``: fused where a branch is made of plain layers, as modules elsewhere; ``True``: fused, and an
            error where a block with adapters cannot; ``False``: every layer of the image model is called. A temporal
            convolution is no layer of the image model, and runs by itself in all of them. None: no change.
        memory: What a training step keeps from the forward pass. ``"fast"``: all but what is cheap to compute again;
            ``"balanced"``: the tokens between branches and those of spatial attention, not what is attended along time
            nor what the MLP activates; ``"low"``: each block's input alone, and what a temporal convolution returned.
            None: no change.
        frozen_precision: Of products with frozen weights. ``"auto"``: the dtype of tokens or autocast; ``"fp8"``:
            float8, each row scaled, where that is faster, forward and for the gradient of the tokens; adapters and what
            is stored stay as they are. It rounds more coarsely, needs an Ada or Hopper GPU and bfloat16 tokens, and is
            an error at the call where a branch cannot run so. None: no change.

    Raises:
        ConfigError: A value is unknown.
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    state = only_root(model).state
    asked: dict[str, Any] = {"fused": fused, "memory": memory, "frozen_precision": frozen_precision}
    changes = {name: value for name, value in asked.items() if value is not None}
    state.execution = dataclasses.replace(state.execution, **changes)
    if frozen_precision == "fp8":
        fp8_missing()  # before a compiler traces it


def explain_execution(model: nn.Module) -> BlockTable[BlockExecution]:
    """Return how each block runs, and why.

    It holds for the weights' device and dtype, or the dtype of an autocast that is on while this is called.

    Args:
        model: A wrapped model.

    Returns:
        A list with one row for each block, which shows itself as a table in a terminal and in a notebook.

    Raises:
        UnsupportedKernelError: ``fused=True``, ``frozen_precision="fp8"`` or an implementation was asked for by name,
            and cannot be.
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    _, root, state = only_root(model)
    anatomy, rows = state.anatomy, BlockTable[BlockExecution]()
    fused = "fused, fp8" if state.execution.frozen_precision == "fp8" else "fused"
    for index, ((path, _), width) in enumerate(zip(anatomy.blocks, anatomy.block_widths, strict=True)):
        block = root.get_submodule(path)
        container = block.aim
        assert isinstance(container, BlockState)
        tokens = torch.empty(state.num_frames, 1, width, **place_of(block))
        branches = fused_branches(block, tokens)
        runs = fused if container.adapted else f"{fused}, no adapter"
        words = [
            "-" if branch is None else branch.reason if isinstance(branch, ByModules) else runs for branch in branches
        ]
        if container.temporal_conv is not None:
            convolution = _convolution(container, tokens)
            words[0] = convolution if branches.temporal is None else f"{convolution}, then {words[0]}"
        rows.append(BlockExecution(index, *words))
    return rows


def _convolution(container: BlockState, tokens: Tensor) -> str:
    """Return how the temporal convolution of a block runs, and why where that is not by its kernel."""
    state = container.root_state
    case = temporal_conv.case_of(tokens.device.type, compute_dtype(tokens), state.config.conv_kernel)
    name, reason = temporal_conv.choose(state.execution.convolution, case)
    return "convolution, triton" if name == "triton" else f"convolution, {name} ({reason})"


def set_base_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Hold the frozen weights of the image model in another dtype; what trains stays as it is.

    Meant for training and inference under ``torch.autocast`` to the same dtype, which the model needs from then on.
    It takes half the memory, casts no weights, and the tokens between the blocks have this dtype too. It cannot be
    undone: the image model that unwrapping gives back holds the rounded weights, and so does its ``state_dict``.
    Checkpoints of adapters are not concerned.

    Args:
        model: A wrapped model. Of a whole CLIP model, the image tower changes.
        dtype: ``torch.bfloat16``, ``torch.float16`` or ``torch.float32``.

    Raises:
        ConfigError: Another dtype.
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    root = only_root(model).root
    if not isinstance(dtype, torch.dtype) or dtype not in _BASE_DTYPES:
        raise ConfigError(f"dtype must be {', '.join(map(str, _BASE_DTYPES))}, got {shown(dtype)}")
    ours = own_parameters(root)
    with torch.no_grad():
        for parameter in root.parameters():
            if id(parameter) not in ours and not parameter.requires_grad and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
