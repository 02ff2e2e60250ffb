"""Residual branches around frozen layers, forward and backward, outside of autograd.

Frozen layers need no gradient of their own, so the backward pass keeps no input of theirs: only what the gradient of
the tokens needs. What is cheap to compute again, such as normalized tokens and activations, is computed again.

The adapter's down-projection is composed with the frozen projection in front of it: ``down(W o + b)`` is
``(W_down W) o + (W_down b + b_down)``. Where the adapter has no skip, as along time, a D x D product per token
is gone; where it has one, the projection's output need not be kept. An adapter beside a frozen layer is computed as
further columns of that layer's matrices: one product gives both, and adds them.

Tokens are rows ``[M, D]`` here, M = B*T*N. A branch's output is handed on beside its input, so that the next branch
adds the two where it reads them anyway.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from aim_adapters.ops.bottleneck import MlpLayers, bottleneck_rows, padded
from aim_adapters.ops.branches.attention import attend, attend_backward
from aim_adapters.ops.branches.dense import hidden_gradient
from aim_adapters.ops.branches.entrance import enter_backward
from aim_adapters.ops.branches.kept import Kept, KeptAttention, KeptMlp, kept_names, select
from aim_adapters.ops.branches.layers import AttentionLayers, Layers, products_for
from aim_adapters.ops.branches.linear import linear, wide_product
from aim_adapters.ops.branches.plan import AttentionPlan, ChainPlan, MlpPlan
from aim_adapters.ops.branches.products import Products
from aim_adapters.ops.branches.tensors import (
    AdapterTensors,
    AttentionTensors,
    BranchTensors,
    MlpTensors,
    TrainedTensors,
)
from aim_adapters.ops.frozen import frozen_rows
from aim_adapters.ops.heads import Heads, head_rows


class Output(NamedTuple):
    """What a branch computes.

    Attributes:
        x: Its input ``[M, D]``, with what the branch in front adds.
        y: What it adds to that ``[M, D]``.
        kept: What the backward pass can use.
    """

    x: Tensor
    y: Tensor
    kept: Kept


class Gradients(NamedTuple):
    """The gradients of a branch.

    Attributes:
        x: That of its input ``[M, D]``, or None where it is not asked for.
        trained: Those of what trains, in the dtypes that products return.
    """

    x: Tensor | None
    trained: TrainedTensors


def branch_forward(
    x: Tensor,
    y: Tensor | None,
    tensors: BranchTensors,
    branch: AttentionPlan | MlpPlan,
    chain: ChainPlan,
    layers: Layers,
    *,
    keep: str,
) -> Output:
    """Compute a branch.

    Args:
        x: Tokens ``[M, D]``, contiguous.
        y: What the branch in front of it adds to them ``[M, D]``, or None.
        tensors: Its tensors.
        branch: Its description.
        chain: The chain it is in.
        layers: Its layers, put together.
        keep: ``"fast"`` or ``"balanced"``: what is kept; ``"low"``: nothing.
    """
    products = products_for(chain.frozen_precision, x.device, chain.compute_dtype)
    names = kept_names(branch, chain, tensors, keep=keep)
    if isinstance(branch, AttentionPlan):
        assert isinstance(layers, AttentionLayers)
        return _attention_forward(x, y, tensors, branch, chain, layers, products, names)
    assert isinstance(layers, MlpLayers)
    return _mlp_forward(x, y, tensors, branch, chain, layers, products, names)


def branch_backward(
    d_out: Tensor,
    x: Tensor,
    tensors: BranchTensors,
    kept: Kept,
    branch: AttentionPlan | MlpPlan,
    chain: ChainPlan,
    layers: Layers,
    *,
    needs_input: bool,
) -> Gradients:
    """Compute the gradients of a branch.

    Args:
        d_out: Gradient of the tokens behind it ``[M, D]``, contiguous.
        x: Its input ``[M, D]``.
        tensors: Its tensors.
        kept: What its forward pass kept.
        branch: Its description.
        chain: The chain it is in.
        layers: Its layers, put together.
        needs_input: The gradient of ``x`` is asked for.
    """
    products = products_for(chain.frozen_precision, x.device, chain.compute_dtype)
    if isinstance(branch, AttentionPlan):
        assert isinstance(kept, KeptAttention) and isinstance(layers, AttentionLayers)
        return _attention_backward(d_out, x, tensors, kept, branch, chain, layers, products, needs_input=needs_input)
    assert isinstance(kept, KeptMlp) and isinstance(layers, MlpLayers)
    return _mlp_backward(d_out, x, tensors, kept, branch, chain, layers, products, needs_input=needs_input)


def _attention_forward(
    x: Tensor,
    y: Tensor | None,
    tensors: BranchTensors,
    branch: AttentionPlan,
    chain: ChainPlan,
    layers: AttentionLayers,
    products: Products[Any],
    names: list[str],
) -> Output:
    t, adapter = tensors.frozen, tensors.trained.adapter
    assert isinstance(t, AttentionTensors)
    bottleneck = bottleneck_rows(x.device)
    x, packed, input_pre = products.project(x, y, t, tensors.trained.input_adapter, branch)
    qkv = _as_heads(packed, branch, chain)  # [B*T, N, 3, H, d]
    out_weight, out_bias, composed = layers
    width, hidden = out_weight.shape[1], 0 if adapter is None else padded(adapter.up_weight.shape[1])
    heads = _heads_between(branch, tensors)
    ready = qkv if heads is None else head_rows(x.device).prepare(qkv, heads)
    lse, bias, wide = None, tensors.trained.temporal_bias, None
    if branch.over != "frames":
        # Attended values, and the adapter's hidden layer beside them unless they are normalized first.
        wide = qkv.new_empty((len(x), width + (0 if branch.inner_norm else hidden)))
        rows = wide[:, :width]
        _, lse = attend(ready, bias, branch, chain.num_frames, windows=tensors.windows, out=_heads(rows, qkv))
    else:
        rows = attend(ready, bias, branch, chain.num_frames)[0].view(len(x), width)
    del ready
    if branch.inner_norm:
        rows = _normalized(rows, t, branch)
    if adapter is None:
        kept = select(KeptAttention(wide, lse, packed=qkv, input_pre=input_pre), names)
        return Output(x, linear(rows, out_weight, out_bias), kept)
    assert composed is not None
    pre = torch.addmm(composed.bias, rows, composed.weight.T)  # [M, W]
    joined = wide is not None and not branch.inner_norm
    beside = wide if wide is not None and joined else qkv.new_empty((len(x), hidden))
    bottleneck.hidden(pre, beside[:, -hidden:], tensors.factor, chain.rows_per_clip, 1.0, branch.adapter)
    if branch.skip and not joined:
        y = linear(rows, out_weight, out_bias).addmm_(beside, composed.widened[:, width:].T)  # [M, D]
    else:
        y = linear(beside, composed.widened, out_bias if branch.skip else None)  # [M, D]
    return Output(x, y, select(KeptAttention(wide, lse, pre, qkv, input_pre), names))


def _attention_backward(
    d_out: Tensor,
    x: Tensor,
    tensors: BranchTensors,
    kept: KeptAttention,
    branch: AttentionPlan,
    chain: ChainPlan,
    layers: AttentionLayers,
    products: Products[Any],
    *,
    needs_input: bool,
) -> Gradients:
    t, adapter, dtype = tensors.frozen, tensors.trained.adapter, chain.compute_dtype
    assert isinstance(t, AttentionTensors)
    bottleneck = bottleneck_rows(x.device)
    d_low = d_out.to(dtype)
    out_weight, out_bias, composed = layers
    width, wide = out_weight.shape[1], kept.wide
    if adapter is None:
        d_o = d_low @ out_weight
    else:
        assert kept.pre is not None and composed is not None
        d = hidden_gradient(d_low, composed.widened, adapter.up_weight.shape[1])
        again = wide is None or branch.inner_norm != ""
        hidden = wide[:, width:] if wide is not None and not again else _hidden_of(adapter, d_low)
        sums = bottleneck.hidden_backward(
            d.adapter, kept.pre, hidden if again else None, tensors.factor, chain.rows_per_clip, 1.0, branch.adapter
        )
        d_up = wide_product(d_low.T, hidden)  # [D, P]
        del hidden
        if branch.skip:
            assert d.joined is not None
            add = torch.Tensor.addmm if branch.inner_norm else torch.Tensor.addmm_  # whole rows for the norm
            d_o = add(d.joined[:, :width], d.adapter, composed.weight)  # [M, H*d]
        else:
            d_o = d.adapter @ composed.weight  # [M, H*d]
    entering, qkv, input_pre = tensors.trained.input_adapter, kept.packed, kept.input_pre
    if qkv is None:
        _, packed, input_pre = products.project(x, None, t, entering, branch)
        qkv = _as_heads(packed, branch, chain)
        del packed
    heads = _heads_between(branch, tensors)
    # What was kept has been rotated already; norms are kept as what they read.
    as_kept = heads is None or (kept.packed is not None and not heads.norm)
    ready = qkv if as_kept or heads is None else head_rows(x.device).prepare(qkv, heads)
    bias, rows = tensors.trained.temporal_bias, None if wide is None else wide[:, :width]
    o = None if rows is None else _heads(rows, qkv)
    if branch.inner_norm:
        attended = attend(ready, bias, branch, chain.num_frames)[0].view(len(x), width) if rows is None else rows
        rows = _normalized(attended, t, branch)
        rows_of, eps = frozen_rows(x.device), branch.inner_eps
        d_o = rows_of.layer_norm_backward(d_o, attended, t.inner_weight, eps, None, branch.inner_norm)
        del attended
    d_qkv, o, d_bias = attend_backward(
        _heads(d_o, qkv), ready, bias, o, kept.lse, branch, chain.num_frames, windows=tensors.windows
    )
    del d_o, ready
    if heads is not None:
        head_rows(x.device).prepare_backward(d_qkv, qkv, heads)
    del qkv
    d_adapter = None
    if adapter is not None:
        d_composed = d.adapter.T @ (o.view(len(x), width) if rows is None else rows)  # [W, H*d]
        d_adapter = AdapterTensors(*bottleneck.gradients(wide_product(d_composed, out_weight.T), sums, d_up, out_bias))
        del d
    del o, wide, rows
    d_x, d_entering = None, None
    if needs_input or entering is not None:
        frozen = frozen_rows(x.device)
        d_h = products.project_backward(d_qkv.view(len(x), len(t.qkv_weight)), t)  # [M, D]
        del d_qkv
        if entering is not None and input_pre is not None:
            h = frozen.layer_norm(x, t.norm_weight, t.norm_bias, branch.eps, dtype, branch.norm)
            d_entering = enter_backward(d_h, h, input_pre, entering, branch.adapter)
            del h
        if needs_input:
            d_x = frozen.layer_norm_backward(d_h, x, t.norm_weight, branch.eps, d_out, branch.norm)
    return Gradients(d_x, TrainedTensors(d_adapter, d_bias, d_entering))


def _mlp_forward(
    x: Tensor,
    y: Tensor | None,
    tensors: BranchTensors,
    branch: MlpPlan,
    chain: ChainPlan,
    layers: MlpLayers,
    products: Products[Any],
    names: list[str],
) -> Output:
    t, adapter = tensors.frozen, tensors.trained.adapter
    assert isinstance(t, MlpTensors)
    x, h, pre = products.expand(x, y, layers, t, adapter, branch)
    del h
    kept = select(KeptMlp(*products.kept(pre)), names)
    activated = products.activate(pre, t, branch, tensors.factor, chain.rows_per_clip)
    del pre
    return Output(x, products.contract(activated, layers, t, adapter), kept)


def _mlp_backward(
    d_out: Tensor,
    x: Tensor,
    tensors: BranchTensors,
    kept: KeptMlp,
    branch: MlpPlan,
    chain: ChainPlan,
    layers: MlpLayers,
    products: Products[Any],
    *,
    needs_input: bool,
) -> Gradients:
    t, adapter = tensors.frozen, tensors.trained.adapter
    assert isinstance(t, MlpTensors)
    if kept.pre is None:
        _, h, pre = products.expand(x, None, layers, t, adapter, branch)
    else:
        h = None  # [M, D]
        if adapter is not None:
            frozen, dtype = frozen_rows(x.device), chain.compute_dtype
            h = frozen.layer_norm(x, t.norm_weight, t.norm_bias, branch.eps, dtype, branch.norm)
        pre = products.restored(kept.pre, kept.units, t)
    d, d_adapter = None, None
    if adapter is not None:
        assert h is not None and pre.adapter is not None
        bottleneck, d_low = bottleneck_rows(x.device), d_out.to(chain.compute_dtype)
        d = products.contract_backward(d_low, layers, t, adapter)
        hidden = d_low.new_empty((len(x), padded(len(adapter.down_weight))))
        sums = bottleneck.hidden_backward(
            d.adapter, pre.adapter, hidden, tensors.factor, chain.rows_per_clip, branch.scale, branch.adapter
        )
        d_down, d_up = wide_product(d.adapter.T, h), wide_product(d_low.T, hidden)
        d_adapter = AdapterTensors(*bottleneck.gradients(d_down, sums, d_up, None))
        del h, hidden
    d_x = None
    if needs_input:
        d_h = products.expand_backward(d_out, d, pre, layers, t, adapter, branch)  # [M, D]
        del d, pre  # before the gradient of the tokens needs memory
        d_x = frozen_rows(x.device).layer_norm_backward(d_h, x, t.norm_weight, branch.eps, d_out, branch.norm)
    return Gradients(d_x, TrainedTensors(d_adapter))


def _normalized(attended: Tensor, t: AttentionTensors, branch: AttentionPlan) -> Tensor:
    """Return attended values ``[M, H*d]``, normalized for the output projection."""
    rows = frozen_rows(attended.device)
    return rows.layer_norm(attended, t.inner_weight, t.inner_bias, branch.inner_eps, attended.dtype, branch.inner_norm)


def _hidden_of(adapter: AdapterTensors, d_low: Tensor) -> Tensor:
    """Return memory for an adapter's hidden layer ``[M, P]``."""
    return d_low.new_empty((len(d_low), padded(len(adapter.down_weight))))


def _heads_between(branch: AttentionPlan, tensors: BranchTensors) -> Heads | None:
    """Return what queries and keys go through between projection and attention, if anything."""
    t = tensors.frozen
    assert isinstance(t, AttentionTensors)
    if not (branch.head_norm or branch.rotary):
        return None
    sin, cos = tensors.positions or (None, None)
    norms = t.q_norm_weight, t.q_norm_bias, t.k_norm_weight, t.k_norm_bias
    return Heads(branch.head_norm, branch.head_eps, *norms, branch.rotary, sin, cos)


def _as_heads(packed: Tensor, branch: AttentionPlan, chain: ChainPlan) -> Tensor:
    """Return a packed projection ``[M, 3*H*d]`` as ``[B*T, N, 3, H, d]``."""
    return packed.view(-1, chain.tokens, 3, branch.heads, packed.shape[1] // (3 * branch.heads))


def _heads(rows: Tensor, qkv: Tensor) -> Tensor:
    """Return rows ``[M, H*d]`` as ``[B*T, N, H, d]``."""
    heads: Tensor = rows.unflatten(0, qkv.shape[:2]).unflatten(-1, qkv.shape[3:])
    return heads
