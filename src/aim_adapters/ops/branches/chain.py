"""Run residual branches one after another as one step of autograd, and as two operators that compilers see whole."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from aim_adapters.errors import InputError, UnsupportedKernelError
from aim_adapters.ops.bottleneck import padded
from aim_adapters.ops.branches import residual, residual_fp8
from aim_adapters.ops.branches.attention import lse_shape
from aim_adapters.ops.branches.plan import AttentionPlan, ChainPlan, MlpPlan, decode, encode

# Tensors of one branch: seven frozen ones, the factor of each clip, five that train, and three of windows.
PER_BRANCH, FROZEN, TRAINED = 16, 7, slice(8, 13)

_LIBRARY = torch.library.Library("aim_adapters", "FRAGMENT")
_LIBRARY.define("branches(Tensor x, Tensor?[] tensors, str plan, bool train) -> Tensor[]")
_LIBRARY.define(
    "branches_backward(Tensor d_out, Tensor x, Tensor[] kept, Tensor?[] tensors, str plan, bool needs_input)"
    " -> Tensor[]"
)


def run_branches(x: Tensor, tensors: Sequence[Tensor | None], plan: ChainPlan) -> Tensor:
    """Run a chain of branches.

    Args:
        x: Tokens ``[B*T, N, D]``, floating point.
        tensors: `PER_BRANCH` of each branch; see `plan.py` for their names and order.
        plan: What is not a tensor.

    Returns:
        Tokens ``[B*T, N, D]`` in the dtype of ``x``.

    Raises:
        InputError: The frames are no multiple of those of a clip.
    """
    clips = any(isinstance(each, AttentionPlan) and each.over == "frames" for each in plan.branches)
    if (clips or any(factor is not None for factor in tensors[FROZEN::PER_BRANCH])) and x.shape[0] % plan.num_frames:
        raise InputError(
            f"the first dimension must be a multiple of num_frames={plan.num_frames}, got {tuple(x.shape)}"
        )
    x = x.contiguous()
    text = encode(plan)
    if torch.is_grad_enabled() and (x.requires_grad or any(t is not None and t.requires_grad for t in tensors)):
        out: Tensor = _Chain.apply(x, text, *tensors)
        return out
    return _forward(x, tensors, text, train=False)[0]


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, text: str, *tensors: Tensor | None) -> Tensor:
        out, *kept = _forward(x, tensors, text, train=True)
        ctx.save_for_backward(x, *kept, *tensors)
        ctx.text, ctx.number = text, len(kept)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise UnsupportedKernelError(
                "fused branches have no second derivative; choose set_execution(model, fused=False)"
            )
        x, *rest = ctx.saved_tensors
        kept, tensors = rest[: ctx.number], rest[ctx.number :]
        needs_input = ctx.needs_input_grad[0]
        found = list(_backward(d_out.contiguous(), x, kept, tensors, ctx.text, needs_input))
        d_x = found.pop(0) if needs_input else None
        gradients: list[Tensor | None] = []
        for index, tensor in enumerate(tensors):
            trains = TRAINED.start <= index % PER_BRANCH < TRAINED.stop and tensor is not None
            gradients.append(found.pop(0) if trains else None)
        return d_x, None, *gradients


def _forward(x: Tensor, tensors: Sequence[Tensor | None], text: str, *, train: bool) -> list[Tensor]:
    if torch.compiler.is_compiling():
        out: list[Tensor] = torch.ops.aim_adapters.branches(x, list(tensors), text, train)
        return out
    return _run(x, tensors, text, train)


def _backward(
    d_out: Tensor, x: Tensor, kept: Sequence[Tensor], tensors: Sequence[Tensor | None], text: str, needs_input: bool
) -> list[Tensor]:
    if torch.compiler.is_compiling():
        out: list[Tensor] = torch.ops.aim_adapters.branches_backward(
            d_out, x, list(kept), list(tensors), text, needs_input
        )
        return out
    return _run_backward(d_out, x, kept, tensors, text, needs_input)


def _run(x: Tensor, tensors: Sequence[Tensor | None], text: str, train: bool) -> list[Tensor]:
    """Return the output, and what the backward pass finds: inputs of branches but the first, and what each kept."""
    plan = decode(text)._replace(tokens=x.shape[1])
    keep = plan.memory if train and plan.memory != "low" else ""
    found: list[Tensor] = []
    with torch.no_grad(), _plain(x):
        rows, y = x.view(-1, x.shape[2]), None  # [M, D]
        for index in range(len(plan.branches)):
            rows, y, kept = _branch(rows, y, tensors, plan, index, keep=keep)
            found += ([rows] if index and keep else []) + kept
        assert y is not None
        return [residual.parts_for(x)[0].add(rows, y).view(x.shape), *found]


def _run_backward(
    d_out: Tensor, x: Tensor, kept: Sequence[Tensor], tensors: Sequence[Tensor | None], text: str, needs_input: bool
) -> list[Tensor]:
    """Return the gradient of the input, if it is wanted, and of each tensor that trains and is there, in order."""
    plan = decode(text)._replace(tokens=x.shape[1])
    with torch.no_grad(), _plain(x):
        inputs, found = _found(x.view(-1, x.shape[2]), list(kept), tensors, plan)
        del kept
        gradients: list[Tensor | None] = []
        d: Tensor | None = d_out.view(-1, x.shape[2])  # [M, D]
        for index in reversed(range(len(plan.branches))):
            branch, own, needs = plan.branches[index], tensors_of(plan, index, tensors), index > 0 or needs_input
            assert d is not None
            given = (d, inputs.pop(), own, found.pop())
            if isinstance(branch, AttentionPlan):
                d, ours = _ways(plan).attention_backward(*given, branch, plan, needs_input=needs)
            else:
                d, ours = _ways(plan).mlp_backward(*given, branch, plan, needs_input=needs)
            del given
            gradients = [g for g, t in zip(ours, own[TRAINED], strict=True) if t is not None] + gradients
    wanted = ([None if d is None else d.view(x.shape)] if needs_input else []) + gradients
    return [each for each in wanted if each is not None]


def _found(
    x: Tensor, kept: list[Tensor], tensors: Sequence[Tensor | None], plan: ChainPlan
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Return each branch's input and what it kept; in low memory, compute them again."""
    inputs: list[Tensor] = []
    found: list[list[Tensor]] = []
    if plan.memory == "low":
        y = None
        for index, branch in enumerate(plan.branches):
            if index + 1 == len(plan.branches) and isinstance(branch, MlpPlan):
                inputs.append(x if y is None else residual.parts_for(x)[0].add(x, y))
                found.append([])
                break
            x, y, own = _branch(x, y, tensors, plan, index, keep="fast")
            inputs.append(x)
            found.append(own)
        return inputs, found
    for index in range(len(plan.branches)):
        inputs.append(kept.pop(0) if index else x)
        number = kept_by(plan, index)
        found.append(kept[:number])
        del kept[:number]
    return inputs, found


def tensors_of(plan: ChainPlan, index: int, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the tensors of a branch, with the frozen ones that it shares with the branch in front of it."""
    branch, own = plan.branches[index], list(tensors[index * PER_BRANCH : (index + 1) * PER_BRANCH])
    if isinstance(branch, AttentionPlan) and branch.shares:
        own[:FROZEN] = tensors[(index - 1) * PER_BRANCH :][:FROZEN]
    return own


def kept_by(plan: ChainPlan, index: int) -> int:
    """Return how many tensors a branch keeps."""
    branch = plan.branches[index]
    if isinstance(branch, AttentionPlan):
        return 2 * (branch.over != "frames") + 2 * branch.adapter + branch.keeps_packed(plan.memory)
    return (plan.memory == "fast") * (1 + (branch.adapter and plan.products == "fp8"))


def _ways(plan: ChainPlan) -> ModuleType:
    """Return what computes branches."""
    return residual_fp8 if plan.products == "fp8" else residual


def _branch(
    x: Tensor, y: Tensor | None, tensors: Sequence[Tensor | None], plan: ChainPlan, index: int, *, keep: str
) -> tuple[Tensor, Tensor, list[Tensor]]:
    branch, own = plan.branches[index], tensors_of(plan, index, tensors)
    ways = _ways(plan)
    forward = ways.attention_forward if isinstance(branch, AttentionPlan) else ways.mlp_forward
    found: tuple[Tensor, Tensor, list[Tensor]] = forward(x, y, own, branch, plan, keep=keep)
    return found


def _plain(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Leave autocast: dtypes are chosen here."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()


# What compilers need to know of the two operators: shapes.


def _fake(x: Tensor, tensors: Sequence[Tensor | None], text: str, train: bool) -> list[Tensor]:
    plan = decode(text)
    dtype, (frames, tokens, width) = plan.compute_dtype, x.shape
    rows, found = frames * tokens, [x.new_empty(x.shape)]
    if not train or plan.memory == "low":
        return found
    for index, branch in enumerate(plan.branches):
        own = tensors_of(plan, index, tensors)
        first, down, windows = own[2], own[8], own[-1]
        assert first is not None
        units = 0 if down is None else down.shape[0]
        shapes: list[tuple[Any, ...]] = []
        if index:
            found.append(x.new_empty((rows, width)))
        if isinstance(branch, AttentionPlan):
            dim = first.shape[0] // 3
            if branch.over != "frames":
                found.append(x.new_empty((rows, dim + (padded(units) if branch.adapter else 0)), dtype=dtype))
                shape = lse_shape(branch, frames, tokens, windows)
                found.append(x.new_empty(shape, dtype=torch.promote_types(dtype, torch.float32)))
            if branch.adapter:
                shapes += [(rows, units), (units, dim)]
            if branch.keeps_packed(plan.memory):
                shapes.append((frames, tokens, 3, branch.heads, dim // branch.heads))
        elif plan.memory == "fast" and plan.products == "fp8":
            shapes += [(rows, first.shape[0])] + [(rows, units)] * branch.adapter
        elif plan.memory == "fast":
            shapes.append((rows, first.shape[0] + units))
        found += [x.new_empty(shape, dtype=dtype) for shape in shapes]
    return found


def _fake_backward(
    d_out: Tensor, x: Tensor, kept: Sequence[Tensor], tensors: Sequence[Tensor | None], text: str, needs_input: bool
) -> list[Tensor]:
    trained = [t for i, t in enumerate(tensors) if TRAINED.start <= i % PER_BRANCH < TRAINED.stop and t is not None]
    return [x.new_empty(x.shape)] * needs_input + [t.new_empty(t.shape) for t in trained]


for _name, _implementation, _shape in (("branches", _run, _fake), ("branches_backward", _run_backward, _fake_backward)):
    _LIBRARY.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"aim_adapters::{_name}", _shape, lib=_LIBRARY)
