"""The tensors of residual branches by name, and the one place where they become the list that an operator takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from aim_adapters.ops.branches.plan import AttentionPlan, ChainPlan


class AttentionTensors(NamedTuple):
    """The frozen layers of an attention branch, any floating dtype.

    Attributes:
        norm_weight: Of the norm in front ``[D]``, or None.
        norm_bias: ``[D]``, or None.
        qkv_weight: Of the packed projection ``[3*H*d, D]``.
        qkv_bias: ``[3*H*d]``, or None.
        out_weight: Of the output projection ``[D, H*d]``.
        out_bias: ``[D]``, or None.
        gamma: LayerScale ``[D]``, or None.
        q_norm_weight: Of the norm of queries ``[d]``, or None.
        q_norm_bias: ``[d]``, or None.
        k_norm_weight: Of the norm of keys ``[d]``, or None.
        k_norm_bias: ``[d]``, or None.
        inner_weight: Of the norm in front of the output projection ``[H*d]``, or None.
        inner_bias: ``[H*d]``, or None.
    """

    norm_weight: Tensor | None
    norm_bias: Tensor | None
    qkv_weight: Tensor
    qkv_bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None
    gamma: Tensor | None
    q_norm_weight: Tensor | None = None
    q_norm_bias: Tensor | None = None
    k_norm_weight: Tensor | None = None
    k_norm_bias: Tensor | None = None
    inner_weight: Tensor | None = None
    inner_bias: Tensor | None = None


class MlpTensors(NamedTuple):
    """The frozen layers of an MLP branch, any floating dtype.

    Attributes:
        norm_weight: Of the norm in front ``[D]``, or None.
        norm_bias: ``[D]``, or None.
        in_weight: Of the first layer ``[K, D]``; of a gated MLP, that of the values.
        in_bias: ``[K]``, or None.
        out_weight: Of the last layer ``[D, K]``.
        out_bias: ``[D]``, or None.
        gamma: LayerScale ``[D]``, or None.
        gate_weight: Of the first layer that is activated in a gated MLP ``[K, D]``, else None.
        gate_bias: ``[K]``, or None.
        inner_weight: Of the norm in front of the last layer ``[K]``, or None.
        inner_bias: ``[K]``, or None.
    """

    norm_weight: Tensor | None
    norm_bias: Tensor | None
    in_weight: Tensor
    in_bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None
    gamma: Tensor | None
    gate_weight: Tensor | None = None
    gate_bias: Tensor | None = None
    inner_weight: Tensor | None = None
    inner_bias: Tensor | None = None


class AdapterTensors(NamedTuple):
    """The weights of an adapter of width W, or their gradients.

    Attributes:
        down_weight: ``[W, D]``.
        down_bias: ``[W]``.
        up_weight: ``[D, W]``.
        up_bias: ``[D]``.
    """

    down_weight: Tensor
    down_bias: Tensor
    up_weight: Tensor
    up_bias: Tensor


class TrainedTensors(NamedTuple):
    """What trains in a branch, or the gradients of that.

    Attributes:
        adapter: The adapter's weights, or None where there is none.
        temporal_bias: Added to the scores along time ``[H, T, T]``, or None.
        input_adapter: The weights of an adapter with an inner skip between norm and projection, or None.
    """

    adapter: AdapterTensors | None = None
    temporal_bias: Tensor | None = None
    input_adapter: AdapterTensors | None = None

    def present(self) -> list[Tensor]:
        """Return the tensors that are there, in order."""
        tensors = (*(self.adapter or ()), self.temporal_bias, *(self.input_adapter or ()))
        return [tensor for tensor in tensors if tensor is not None]


class WindowTensors(NamedTuple):
    """Which tokens attend to one another, where a frame is cut in windows of N tokens or is one window.

    Attributes:
        bias: Added to the scores ``[H, N, N]``.
        mask: Added to the scores of each window ``[W, N, N]``, float32, or None.
        token_index: The tokens of each window ``[W, N]``, int32; None where a frame is one window.
    """

    bias: Tensor
    mask: Tensor | None = None
    token_index: Tensor | None = None


class PositionTensors(NamedTuple):
    """Angles by which queries and keys of the last N' tokens of a frame are rotated, any floating dtype.

    Attributes:
        sin: Their sines ``[N', d]`` or ``[H, N', d]``.
        cos: Their cosines, the same.
    """

    sin: Tensor
    cos: Tensor


class BranchTensors(NamedTuple):
    """The tensors of one branch.

    Attributes:
        frozen: The layers of the image model; None where they are those of the branch in front.
        trained: What gets a gradient.
        factor: Stochastic depth of each clip ``[B]``, float32 at least, or None for 1.
        windows: The windows of spatial attention, or None.
        positions: The rotary positions of spatial attention, or None.
    """

    frozen: AttentionTensors | MlpTensors | None
    trained: TrainedTensors = TrainedTensors()
    factor: Tensor | None = None
    windows: WindowTensors | None = None
    positions: PositionTensors | None = None

    def sharing(self) -> BranchTensors:
        """Return the tensors of the same branch behind another that gives its frozen layers."""
        return BranchTensors(None, self.trained, self.factor, self.windows, self.positions)


_FROZEN, _ADAPTER = max(len(AttentionTensors._fields), len(MlpTensors._fields)), len(AdapterTensors._fields)
_WINDOWS, _POSITIONS = len(WindowTensors._fields), len(PositionTensors._fields)
# Of a branch, in the order of `flatten`: frozen tensors, those that train (the adapter's, the temporal bias and the
# input adapter's), the factor, and those of windows and of positions.
_TRAINED = _ADAPTER + 1 + _ADAPTER
_COUNT = _FROZEN + _TRAINED + 1 + _WINDOWS + _POSITIONS
_NONE = (None,) * _COUNT


def flatten(branches: Sequence[BranchTensors]) -> list[Tensor | None]:
    """Return the tensors of branches as the operator's schema has them: as many for each, None for what is absent."""
    flat: list[Tensor | None] = []
    for branch in branches:
        # Not by `+=`: the compiler of PyTorch 2.11 adds no named tuple to a list.
        flat.extend(branch.frozen or ())
        flat.extend(_NONE[: _FROZEN - len(branch.frozen or ())])
        flat.extend(branch.trained.adapter or _NONE[:_ADAPTER])
        flat.append(branch.trained.temporal_bias)
        flat.extend(branch.trained.input_adapter or _NONE[:_ADAPTER])
        flat.append(branch.factor)
        flat.extend(branch.windows or _NONE[:_WINDOWS])
        flat.extend(branch.positions or _NONE[:_POSITIONS])
    return flat


def flat_gradients(flat: Sequence[Tensor | None], gradients: Iterator[Tensor]) -> list[Tensor | None]:
    """Return gradients, taken one by one, in place of what trains among the tensors that `flatten` returned.

    Args:
        flat: What `flatten` returned.
        gradients: One for each tensor that trains, in order.
    """
    # Compilers trace this, and would trace how a plan is read as well: so it knows the order, and not the kinds.
    out: list[Tensor | None] = []
    for start in range(_FROZEN, len(flat), _COUNT):
        trained = flat[start : start + _TRAINED]
        out += [None] * _FROZEN
        out += [None if tensor is None else next(gradients) for tensor in trained]
        out += [None] * (_COUNT - _FROZEN - _TRAINED)
    return out


def with_shared(branches: Sequence[BranchTensors]) -> list[BranchTensors]:
    """Return branches, each with the frozen layers that it shares with the one in front."""
    whole: list[BranchTensors] = []
    for branch in branches:
        whole.append(branch if branch.frozen is not None else branch._replace(frozen=whole[-1].frozen))
    return whole


def unflatten(flat: Sequence[Tensor | None], plan: ChainPlan) -> list[BranchTensors]:
    """Return what `flatten` was given, each branch with the frozen layers that it shares with the one in front."""
    branches: list[BranchTensors] = []
    for start, branch in zip(range(0, len(flat), _COUNT), plan.branches, strict=True):
        trained, factor = start + _FROZEN, start + _FROZEN + _TRAINED
        bias, positions = trained + _ADAPTER, factor + 1 + _WINDOWS
        kind = AttentionTensors if isinstance(branch, AttentionPlan) else MlpTensors
        shares = isinstance(branch, AttentionPlan) and branch.shares
        branches.append(
            BranchTensors(
                None if shares else kind(*flat[start : start + len(kind._fields)]),  # type: ignore[arg-type]
                TrainedTensors(_adapter(flat, trained), flat[bias], _adapter(flat, bias + 1)),
                flat[factor],
                None if flat[factor + 1] is None else WindowTensors(*flat[factor + 1 : positions]),  # type: ignore[arg-type]
                None if flat[positions] is None else PositionTensors(*flat[positions : start + _COUNT]),  # type: ignore[arg-type]
            )
        )
    return with_shared(branches)


def _adapter(flat: Sequence[Tensor | None], start: int) -> AdapterTensors | None:
    return None if flat[start] is None else AdapterTensors(*flat[start : start + _ADAPTER])  # type: ignore[arg-type]
