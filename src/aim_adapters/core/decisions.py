"""How a block runs, decided once for tokens of a kind and remembered while nothing that it depends on has changed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from aim_adapters.anatomy import Positions
from aim_adapters.config import AIMConfig, Execution
from aim_adapters.core.fusion import Branches, compute_dtype, dtype_beside, fused_branches, held_weight
from aim_adapters.core.watch import Watch
from aim_adapters.ops.device import exporting

_MOST = 16  # kinds of tokens that a block remembers
_IGNORED = frozenset({"aim", "decisions", "narrowed"})


class Decision(NamedTuple):
    """How a block runs for tokens of a kind.

    Attributes:
        branches: How each branch runs.
        dtype: Of the tokens.
        execution: What was asked for.
        config: The settings of the adapter.
        watch: What the block was made of.
        weight: A weight of its attention, or None.
    """

    branches: Branches
    dtype: torch.dtype
    execution: Execution
    config: AIMConfig
    watch: Watch
    weight: Tensor | None


def decide(block: Any, x: Tensor, *, positions: Positions | str | None) -> tuple[Tensor, Branches]:
    """Return the tokens of a block in the dtype in which it runs, and how each of its branches runs.

    Args:
        block: An adapted block.
        x: Its tokens ``[B*T, ..., D]``.
        positions: What its spatial attention reads of places, or why it must run as modules.

    Raises:
        UnsupportedKernelError: ``fused=True`` or ``frozen_precision="fp8"`` was asked for, and a branch cannot be.
    """
    aim = block.aim
    if torch.compiler.is_compiling() or exporting() or _watched():
        x = x.to(dtype_beside(held_weight(block), x))
        return x, fused_branches(block, x, positions=positions)
    state = aim.root_state
    places = positions.kind() if isinstance(positions, Positions) else positions
    kind = (x.dtype, x.device, x.shape[1:], compute_dtype(x), places, torch.is_grad_enabled(), block.training)
    found: Decision | None = aim.decisions.get(kind)
    if (
        found is None
        or found.execution is not state.execution
        or found.config is not state.config
        or not found.watch.unchanged(block, aim)
        or dtype_beside(found.weight, x) != found.dtype
    ):
        found = _decide(block, x, positions=positions)
        if len(aim.decisions) >= _MOST:
            aim.decisions.clear()
        aim.decisions[kind] = found
    branches = found.branches.at(positions) if isinstance(positions, Positions) else found.branches
    return (x if x.dtype == found.dtype else x.to(found.dtype)), branches


def _decide(block: Any, x: Tensor, *, positions: Positions | str | None) -> Decision:
    aim, state, weight = block.aim, block.aim.root_state, held_weight(block)
    x = x.to(dtype_beside(weight, x))
    branches = fused_branches(block, x, positions=positions)
    if isinstance(positions, Positions):  # those of a call are not remembered
        branches = branches.at(Positions())
    return Decision(branches, x.dtype, state.execution, state.config, Watch(block, aim, ignoring=_IGNORED), weight)


def _watched() -> bool:
    """Return whether tensors are not what they seem: transformed, or watched by a mode that sees operators."""
    return torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() > 0
