"""What a branch keeps for the backward pass, by name, and the one place where it becomes a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from aim_adapters.ops.branches.plan import AttentionPlan, ChainPlan, MlpPlan
from aim_adapters.ops.branches.tensors import BranchTensors


class KeptAttention(NamedTuple):
    """What an attention branch keeps; None where it is absent or computed again.

    Attributes:
        wide: Attended values ``[M, H*d + P]``, with the adapter's hidden layer behind them; of spatial attention.
        lse: Log-sum-exp of the scores, as `attend` returns it; of spatial attention.
        pre: What the adapter activates ``[M, W]``.
        packed: Queries, keys and values ``[B*T, N, 3, H, d]``.
        input_pre: What an adapter in front of the projection activates ``[M, W]``.
    """

    wide: Tensor | None = None
    lse: Tensor | None = None
    pre: Tensor | None = None
    packed: Tensor | None = None
    input_pre: Tensor | None = None


class KeptMlp(NamedTuple):
    """What an MLP branch keeps; None where it is absent or computed again.

    Attributes:
        pre: What the MLP activates ``[M, K]``, with what that gates behind it ``[M, 2*C]``, and with what the adapter
            activates behind that ``[M, .. + W]``.
        units: What the adapter activates ``[M, W]``, where it lies apart.
    """

    pre: Tensor | None = None
    units: Tensor | None = None


Kept = KeptAttention | KeptMlp


def kept_names(branch: AttentionPlan | MlpPlan, chain: ChainPlan, tensors: BranchTensors, *, keep: str) -> list[str]:
    """Return what a branch keeps, as names of `KeptAttention` or `KeptMlp`.

    Args:
        branch: The branch.
        chain: The chain it is in.
        tensors: Its tensors.
        keep: ``"fast"`` or ``"balanced"``; ``"low"``: nothing.
    """
    has_adapter = tensors.trained.adapter is not None
    if keep == "low":
        return []
    if isinstance(branch, MlpPlan):
        apart = has_adapter and chain.frozen_precision == "fp8"
        return ["pre", *["units"] * apart] if keep == "fast" else []
    spatial = ["wide", "lse"] if branch.over != "frames" else []
    adapter = ["pre"] if has_adapter else []
    projected = ["packed"] + ["input_pre"] * (tensors.trained.input_adapter is not None)
    return [*spatial, *adapter, *projected * branch.keeps_packed(keep)]


def select(kept: Kept, names: Sequence[str]) -> Kept:
    """Return what a branch keeps without what is not named, whose memory is free then."""
    return type(kept)(**{name: getattr(kept, name) for name in names}) if names else type(kept)()


def flatten_kept(kept: Kept) -> list[Tensor]:
    """Return the tensors that are there, in order."""
    return [tensor for tensor in kept if tensor is not None]


def unflatten_kept(branch: AttentionPlan | MlpPlan, tensors: Sequence[Tensor], names: Sequence[str]) -> Kept:
    """Return what `flatten_kept` was given."""
    kind = KeptAttention if isinstance(branch, AttentionPlan) else KeptMlp
    return kind(**dict(zip(names, tensors, strict=True)))
