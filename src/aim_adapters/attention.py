"""Choose the implementation of temporal attention, and say which one each block runs and why."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import nn

from aim_adapters.config import Attention
from aim_adapters.guards import only_root
from aim_adapters.layers.state import BlockState
from aim_adapters.ops.temporal_attention import case_of, choose
from aim_adapters.plan import place_of


class BlockAttention(NamedTuple):
    """Say how one block attends over time.

    Attributes:
        block: Index of the block.
        implementation: ``"triton"``, ``"sdpa"``, ``"eager"``, or ``"-"`` where it does not attend over time.
        reason: Why.
    """

    block: int
    implementation: str
    reason: str


def set_attention(model: nn.Module, attention: Attention) -> None:
    """Choose the implementation of temporal attention. All of them compute the same, to rounding.

    It holds for the adapter that runs; others keep theirs. A compiled model compiles once more.

    Args:
        model: A wrapped model.
        attention: ``"auto"``, which falls back where a kernel does not fit; or ``"triton"``, ``"sdpa"`` or ``"eager"``,
            which raise `UnsupportedKernelError` there.

    Raises:
        ConfigError: The name is unknown.
        UnsupportedKernelError: The named implementation cannot run here.
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    _, _, shared = only_root(model)
    choose(attention)
    shared.config = dataclasses.replace(shared.config, attention=attention)


def explain_attention(model: nn.Module) -> list[BlockAttention]:
    """Print which implementation of temporal attention each block runs and why, and return the same.

    It holds for the weights' device and dtype, or the dtype of an autocast that is on while this is called.

    Args:
        model: A wrapped model.

    Raises:
        UnsupportedKernelError: An implementation was asked for by name that cannot compute this.
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    _, root, shared = only_root(model)
    anatomy, rows = shared.record.anatomy, []
    for index, ((path, block_anatomy), width) in enumerate(zip(anatomy.blocks, anatomy.block_widths, strict=True)):
        block = root.get_submodule(path)
        state = getattr(block, "aim", None)
        if not isinstance(state, BlockState) or state.temporal is None:
            rows.append(BlockAttention(index, "-", "does not attend over time"))
            continue
        place, heads = place_of(block), block_anatomy.heads(getattr(block, block_anatomy.attention))
        device, dtype = place["device"].type, place["dtype"]
        if dtype != torch.float64 and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        choice = choose(shared.config.attention, case_of(device, dtype, width // heads, shared.num_frames))
        rows.append(BlockAttention(index, *choice))
    _print(rows)
    return rows


def _print(rows: list[BlockAttention]) -> None:
    """Print neighbouring blocks that do the same in one line."""
    lines: list[tuple[str, str, str]] = [("blocks", "attention", "reason")]
    start = 0
    for index, row in enumerate(rows):
        if index + 1 == len(rows) or rows[index + 1][1:] != row[1:]:
            first = rows[start].block
            lines.append((str(first) if first == row.block else f"{first}-{row.block}", *row[1:]))
            start = index + 1
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    for blocks, attention, reason in lines:
        print(f"{blocks:<{widths[0]}}  {attention:<{widths[1]}}  {reason}")
