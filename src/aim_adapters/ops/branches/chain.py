"""Residual branches one after another as one step of autograd, and as two operators that compilers see whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aim_adapters.errors import InputError, StateError, UnsupportedKernelError
from aim_adapters.ops.bottleneck import padded
from aim_adapters.ops.branches.attention import lse_shape
from aim_adapters.ops.branches.kept import (
    Kept,
    KeptAttention,
    KeptMlp,
    flatten_kept,
    kept_names,
    select,
    unflatten_kept,
)
from aim_adapters.ops.branches.layers import Layers, layers_of
from aim_adapters.ops.branches.plan import AttentionPlan, ChainPlan, MlpPlan, decode, encode
from aim_adapters.ops.branches.products import columns_of
from aim_adapters.ops.branches.residual import branch_backward, branch_forward
from aim_adapters.ops.branches.tensors import (
    AttentionTensors,
    BranchTensors,
    MlpTensors,
    flat_gradients,
    flatten,
    unflatten,
    with_shared,
)
from aim_adapters.ops.frozen import frozen_rows

_LIBRARY = torch.library.Library("aim_adapters", "FRAGMENT")
_LIBRARY.define("branches(Tensor x, Tensor?[] tensors, str plan, bool train) -> Tensor[]")
_LIBRARY.define(
    "branches_backward(Tensor d_out, Tensor x, Tensor[] kept, Tensor?[] tensors, str plan, bool needs_input)"
    " -> Tensor[]"
)


def run_branches(x: Tensor, branches: Sequence[BranchTensors], plan: ChainPlan) -> Tensor:
    """Run a chain of branches.

    Args:
        x: Tokens ``[B*T, N, D]``, floating point.
        branches: The tensors of each branch.
        plan: What is not a tensor.

    Returns:
        Tokens ``[B*T, N, D]`` in the dtype of ``x``.

    Raises:
        InputError: The frames are no multiple of those of a clip.
    """
    clips = any(isinstance(branch, AttentionPlan) and branch.over == "frames" for branch in plan.branches)
    if (clips or any(branch.factor is not None for branch in branches)) and x.shape[0] % plan.num_frames:
        raise InputError(
            f"the first dimension must be a multiple of num_frames={plan.num_frames}, got {tuple(x.shape)}; pass whole "
            "clips"
        )
    x = x.contiguous()
    trained = [tensor for branch in branches for tensor in branch.trained.present()]
    differentiates = torch.is_grad_enabled() and (x.requires_grad or any(tensor.requires_grad for tensor in trained))
    out: Tensor
    if torch.compiler.is_compiling():
        flat, text = flatten(branches), encode(plan)
        if differentiates:
            out = _Chain.apply(x, text, *flat)
        else:
            out = torch.ops.aim_adapters.branches(x, flat, text, False)[0]
        return out
    whole, plan = with_shared(branches), plan.with_tokens(x.shape[1])
    if differentiates:
        out = _EagerChain.apply(x, _Call(whole, plan), *trained)
        return out
    with torch.no_grad():
        out = _compute(x, whole, plan, _layers(x, whole, plan), train=False)[0]
    return out


class _Call(NamedTuple):
    """A call of a chain: its branches and their description."""

    branches: list[BranchTensors]
    plan: ChainPlan

    def versions(self) -> int:
        """Return a number that changes when a frozen tensor is written to."""
        return sum(t._version for branch in self.branches for t in branch.frozen or () if t is not None)


class _EagerChain(torch.autograd.Function):
    """`_Chain` without the operators, which compilers alone need: what is frozen is kept as it was given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: _Call, *trained: Tensor) -> Tensor:
        branches, plan = call
        layers = _layers(x, branches, plan)
        out, *kept = _compute(x, branches, plan, layers, train=True)
        ctx.save_for_backward(x, *kept, *trained)
        ctx.layers = layers if plan.memory == "fast" else None
        ctx.call, ctx.number, ctx.versions = call, len(kept), call.versions()
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        if ctx.call.versions() != ctx.versions:
            raise StateError(
                "a frozen weight was written to between the forward and the backward pass, which needs it as it was; "
                "change weights behind loss.backward()"
            )
        x, *rest = ctx.saved_tensors  # what trains is looked at, and was not written to either
        needs_input = ctx.needs_input_grad[0]
        branches, plan = ctx.call
        layers = ctx.layers or _layers(x, branches, plan)
        found = _compute_backward(
            d_out.contiguous(), x, rest[: ctx.number], branches, plan, layers, needs_input=needs_input
        )
        return (found[0] if needs_input else None, None, *found[int(needs_input) :])


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise UnsupportedKernelError(
            "fused branches have no second derivative; choose set_execution(model, fused=False)"
        )


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, text: str, *flat: Tensor | None) -> Tensor:
        out: Tensor
        out, *kept = torch.ops.aim_adapters.branches(x, list(flat), text, True)
        ctx.save_for_backward(x, *kept, *flat)
        ctx.text, ctx.number = text, len(kept)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        x, *rest = ctx.saved_tensors
        kept, flat = rest[: ctx.number], rest[ctx.number :]
        needs_input = ctx.needs_input_grad[0]
        found = iter(
            torch.ops.aim_adapters.branches_backward(
                d_out.contiguous(), x, list(kept), list(flat), ctx.text, needs_input
            )
        )
        d_x = next(found) if needs_input else None
        return d_x, None, *flat_gradients(flat, found)


def _run(x: Tensor, flat: Sequence[Tensor | None], text: str, train: bool) -> list[Tensor]:
    """Compute as `_compute` does, from what the operator takes."""
    plan = decode(text).with_tokens(x.shape[1])
    with torch.no_grad():
        branches = unflatten(flat, plan)
        return _compute(x, branches, plan, _layers(x, branches, plan), train=train)


def _layers(x: Tensor, branches: Sequence[BranchTensors], plan: ChainPlan) -> list[Layers]:
    with _WithoutAutocast(x):
        return layers_of(branches, plan, x.device)


def _compute(
    x: Tensor, branches: Sequence[BranchTensors], plan: ChainPlan, layers: Sequence[Layers], *, train: bool
) -> list[Tensor]:
    """Return the output, and what the backward pass uses: inputs of branches but the first, and what each kept.

    Autograd must not record.
    """
    keep = plan.memory if train else "low"
    saved: list[Tensor] = []
    with _WithoutAutocast(x):
        rows, y = x.view(-1, x.shape[2]), None  # [M, D]
        for index, (branch, tensors) in enumerate(zip(plan.branches, branches, strict=True)):
            rows, y, kept = branch_forward(rows, y, tensors, branch, plan, layers[index], keep=keep)
            saved += ([rows] if index and keep != "low" else []) + flatten_kept(kept)
        assert y is not None
        return [without_base(frozen_rows(x.device).add(rows, y), x.shape), *saved]


def without_base(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a new tensor in another shape, though not as a view: FSDP2 warns of blocks that return views."""
    out: Tensor = torch.ops.aten._unsafe_view.default(x, shape)
    return out


def _run_backward(
    d_out: Tensor, x: Tensor, saved: Sequence[Tensor], flat: Sequence[Tensor | None], text: str, needs_input: bool
) -> list[Tensor]:
    """Return the gradient of the input, if it is asked for, and of each tensor that trains and is there, in order."""
    plan = decode(text).with_tokens(x.shape[1])
    with torch.no_grad():
        branches = unflatten(flat, plan)
        layers = _layers(x, branches, plan)
        return _compute_backward(d_out, x, saved, branches, plan, layers, needs_input=needs_input)


def _compute_backward(
    d_out: Tensor,
    x: Tensor,
    saved: Sequence[Tensor],
    branches: Sequence[BranchTensors],
    plan: ChainPlan,
    layers: Sequence[Layers],
    *,
    needs_input: bool,
) -> list[Tensor]:
    """Return what `_run_backward` does."""
    with _WithoutAutocast(x):
        steps = _steps(x.view(-1, x.shape[2]), saved, branches, plan, layers)
        gradients: list[Tensor] = []
        d: Tensor | None = d_out.view(-1, x.shape[2])  # [M, D]
        while steps:
            index, (rows, kept) = len(steps) - 1, steps.pop()
            assert d is not None
            tensors = branches[index]
            d, trained = branch_backward(
                d, rows, tensors, kept, plan.branches[index], plan, layers[index], needs_input=index > 0 or needs_input
            )
            del rows, kept
            pairs = zip(trained.present(), tensors.trained.present(), strict=True)
            gradients = [gradient.to(tensor.dtype) for gradient, tensor in pairs] + gradients
    if not needs_input:
        return gradients
    assert d is not None
    return [d.view(x.shape), *gradients]


class _Step(NamedTuple):
    """What the backward pass of one branch starts from: its input ``[M, D]``, and what it kept."""

    x: Tensor
    kept: Kept


def _steps(
    x: Tensor, saved: Sequence[Tensor], branches: Sequence[BranchTensors], plan: ChainPlan, layers: Sequence[Layers]
) -> list[_Step]:
    """Return each branch's input and what it kept; in low memory, compute them again."""
    steps: list[_Step] = []
    if plan.memory == "low":
        y = None
        for index, (branch, tensors) in enumerate(zip(plan.branches, branches, strict=True)):
            if index + 1 == len(branches) and isinstance(branch, MlpPlan):
                steps.append(_Step(x if y is None else frozen_rows(x.device).add(x, y), KeptMlp()))
                break
            x, y, kept = branch_forward(x, y, tensors, branch, plan, layers[index], keep="fast")
            steps.append(_Step(x, kept))
        return steps
    values = iter(saved)
    for index, (branch, tensors) in enumerate(zip(plan.branches, branches, strict=True)):
        rows = next(values) if index else x
        names = kept_names(branch, plan, tensors, keep=plan.memory)
        steps.append(_Step(rows, unflatten_kept(branch, [next(values) for _ in names], names)))
    return steps


class _WithoutAutocast:
    """Outside of autocast for a while: dtypes are chosen here. `torch.autocast` takes ten times as long to say so."""

    def __init__(self, x: Tensor) -> None:
        self._device, self._enabled = x.device.type, False

    def __enter__(self) -> None:
        self._enabled = torch.is_autocast_enabled(self._device)
        if self._enabled:
            torch.set_autocast_enabled(self._device, False)

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            torch.set_autocast_enabled(self._device, True)


# What compilers need to know of the two operators: shapes.


def _fake(x: Tensor, flat: Sequence[Tensor | None], text: str, train: bool) -> list[Tensor]:
    plan = decode(text)
    outputs = [x.new_empty(x.shape)]
    if not train or plan.memory == "low":
        return outputs
    for index, (branch, tensors) in enumerate(zip(plan.branches, unflatten(flat, plan), strict=True)):
        if index:
            outputs.append(x.new_empty((x.shape[0] * x.shape[1], x.shape[2])))
        kept = _fake_kept(x, branch, tensors, plan)
        outputs += flatten_kept(select(kept, kept_names(branch, plan, tensors, keep=plan.memory)))
    return outputs


def _fake_kept(x: Tensor, branch: AttentionPlan | MlpPlan, tensors: BranchTensors, plan: ChainPlan) -> Kept:
    """Return all that a branch could keep."""
    dtype, (frames, tokens, _) = plan.compute_dtype, x.shape
    rows, adapter, t = frames * tokens, tensors.trained.adapter, tensors.frozen
    units = 0 if adapter is None else adapter.down_weight.shape[0]
    entering = tensors.trained.input_adapter

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return x.new_empty(shape, dtype=dtype)

    if isinstance(t, MlpTensors):
        joined = 0 if plan.frozen_precision == "fp8" else units
        layers = 1 if t.gate_weight is None else 2
        return KeptMlp(empty(rows, layers * columns_of(t) + joined), empty(rows, units))
    assert isinstance(t, AttentionTensors) and isinstance(branch, AttentionPlan)
    width = t.qkv_weight.shape[0] // 3
    lse = lse_shape(branch, frames, tokens, None if tensors.windows is None else tensors.windows.token_index)
    return KeptAttention(
        wide=empty(rows, width + (0 if adapter is None or branch.inner_norm else padded(units))),
        lse=empty(*lse, dtype=torch.promote_types(dtype, torch.float32)),
        pre=empty(rows, units),
        packed=empty(frames, tokens, 3, branch.heads, width // branch.heads),
        input_pre=None if entering is None else empty(rows, entering.down_weight.shape[0]),
    )


def _fake_backward(
    d_out: Tensor, x: Tensor, saved: Sequence[Tensor], flat: Sequence[Tensor | None], text: str, needs_input: bool
) -> list[Tensor]:
    trained = [tensor for branch in unflatten(flat, decode(text)) for tensor in branch.trained.present()]
    return [x.new_empty(x.shape)] * needs_input + [tensor.new_empty(tensor.shape) for tensor in trained]


for _name, _implementation, _shape in (("branches", _run, _fake), ("branches_backward", _run_backward, _fake_backward)):
    _LIBRARY.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"aim_adapters::{_name}", _shape, lib=_LIBRARY)
