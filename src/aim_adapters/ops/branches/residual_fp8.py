"""Compute residual branches with the products by frozen weights in float8, where that saves time.

That is where a kernel writes the tokens anyway and can write them scaled: norms in front of the attention's projection
and of the MLP, activations and their gradients; and for the gradients of the MLP's output and of the attention's
projection, wide enough to pay for one more pass. The attention's output and its gradient would each need a pass of
their own, which costs what a product of D columns gains: these products stay in the compute dtype, as do all of
adapters.

Frozen weights are scaled on the way at every call, so that nothing is stored and nothing can go stale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aim_adapters.ops.bottleneck import padded
from aim_adapters.ops.branches import residual
from aim_adapters.ops.branches.plan import AttentionPlan, ChainPlan, MlpPlan
from aim_adapters.ops.branches.residual import (
    Tensors,
    _in_dtypes,
    _linear,
    _output,
    _product,
    _require,
    _to,
    as_heads,
    parts_for,
)
from aim_adapters.ops.frozen import fp8


def attention_forward(
    x: Tensor, y: Tensor | None, tensors: Tensors, branch: AttentionPlan, chain: ChainPlan, *, keep: str
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Compute an attention branch.

    Args:
        x: Tokens ``[M, D]``, contiguous.
        y: What the branch in front of it adds to them ``[M, D]``, or None.
        tensors: As `ATTENTION_FROZEN`, the factor of each clip, `TRAINED` and `WINDOWS` name them.
        branch: The branch.
        chain: The chain it is in.
        keep: ``"fast"`` or ``"balanced"``, what is kept; ``""``: nothing.

    Returns:
        The branch's input ``x + y``; what it adds to that, ``[M, D]``; what the backward pass finds.
    """
    return residual.attention_forward(x, y, tensors, branch, chain, keep=keep, enter=_enter_qkv)


def attention_backward(
    d_out: Tensor,
    x: Tensor,
    tensors: Tensors,
    kept: list[Tensor],
    branch: AttentionPlan,
    chain: ChainPlan,
    *,
    needs_input: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Return the gradients of the tokens and of what trains.

    Args:
        d_out: Gradient of the tokens behind the branch ``[M, D]``, contiguous.
        x: The branch's input ``[M, D]``.
        tensors: As in `attention_forward`.
        kept: What that kept.
        branch: The branch.
        chain: The chain it is in.
        needs_input: The gradient of ``x`` is wanted.
    """
    return residual.attention_backward(
        d_out, x, tensors, kept, branch, chain, needs_input=needs_input, enter=_enter_qkv, leave=_leave_qkv
    )


def mlp_forward(
    x: Tensor, y: Tensor | None, tensors: Tensors, branch: MlpPlan, chain: ChainPlan, *, keep: str
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Compute an MLP branch.

    Args:
        x: Tokens ``[M, D]``, contiguous.
        y: What the branch in front of it adds to them ``[M, D]``, or None.
        tensors: As `MLP_FROZEN`, the factor of each clip, and `TRAINED` name them.
        branch: The branch.
        chain: The chain it is in.
        keep: ``"fast"`` or ``"balanced"``, what is kept; ``""``: nothing.

    Returns:
        The branch's input ``x + y``; what it adds to that, ``[M, D]``; what the backward pass finds.
    """
    parts, bottleneck, dtype = fp8.parts_for(x), parts_for(x)[1], chain.compute_dtype
    factor, _, _, up_w, up_b, _ = tensors[7:13]
    x, _, pre, units = _enter_mlp(x, y, tensors, branch, dtype)
    out_w, out_b = _output(tensors, dtype)
    y = fp8.product(parts.activation(pre, branch.activation), parts.quantize(out_w), out_b, dtype)  # [M, D]
    if units is not None:
        assert up_w is not None and up_b is not None
        hidden = units.new_empty((len(x), padded(up_w.shape[1])))
        bottleneck.hidden(units, hidden, factor, chain.rows_per_clip, branch.scale)
        y.addmm_(hidden, bottleneck.widened(None, up_w, up_b, dtype).T)
    return x, y, [each for each in (pre, units) if each is not None] if keep == "fast" else []


def mlp_backward(
    d_out: Tensor,
    x: Tensor,
    tensors: Tensors,
    kept: list[Tensor],
    branch: MlpPlan,
    chain: ChainPlan,
    *,
    needs_input: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Return the gradients of the tokens and of what trains.

    Args:
        d_out: Gradient of the tokens behind the branch ``[M, D]``, contiguous.
        x: The branch's input ``[M, D]``.
        tensors: As in `mlp_forward`.
        kept: What that kept, or nothing.
        branch: The branch.
        chain: The chain it is in.
        needs_input: The gradient of ``x`` is wanted.
    """
    parts, (frozen, bottleneck), dtype = fp8.parts_for(x), parts_for(x), chain.compute_dtype
    factor, down_w, _, up_w, up_b, _ = tensors[7:13]
    gradients: list[Tensor | None] = [None] * 5
    if not kept:
        _, h, pre, units = _enter_mlp(x, None, tensors, branch, dtype)
    else:
        pre, units = kept if branch.adapter else (kept[0], None)
        h = frozen.layer_norm(x, tensors[0], tensors[1], branch.eps, dtype) if branch.adapter else None
    d_units = None
    if units is not None:
        assert h is not None and down_w is not None and up_w is not None and up_b is not None
        d_low, hidden = d_out.to(dtype), units.new_empty((len(x), padded(len(down_w))))
        d_units = d_low @ up_w.to(dtype)  # [M, W]
        sums = bottleneck.hidden_backward(d_units, units, hidden, factor, chain.rows_per_clip, branch.scale)
        gradients[:4] = bottleneck.gradients(_product(d_units.T, h), sums, _product(d_low.T, hidden), None)
        del h, hidden, units
    d_x = None
    if needs_input:
        out_w = parts.quantize_columns(_output(tensors, dtype)[0])
        d_act = fp8.product(parts.quantize(d_out), out_w, None, dtype)  # [M, K]
        d_pre = parts.activation_backward(d_act, pre, branch.activation)
        del d_act, pre
        d_h = fp8.product(d_pre, parts.quantize_columns(_require(tensors[2])), None, dtype)  # [M, D]
        if d_units is not None:
            d_h.addmm_(d_units, _require(down_w).to(dtype))
        d_x = frozen.layer_norm_backward(d_h, x, tensors[0], branch.eps, d_out)
    return d_x, _in_dtypes(gradients, tensors)


def _enter_qkv(
    x: Tensor, y: Tensor | None, tensors: Tensors, branch: AttentionPlan, chain: ChainPlan
) -> tuple[Tensor, Tensor]:
    """Return a branch's input, and queries, keys and values ``[B*T, N, 3, H, d]``."""
    parts, dtype, weight = fp8.parts_for(x), chain.compute_dtype, _require(tensors[2])
    x, _, h = parts.layer_norm(x, y, tensors[0], tensors[1], branch.eps, None)
    packed = fp8.product(h, parts.quantize(weight), _to(tensors[3], dtype), dtype)  # [M, 3*H*d]
    return x, as_heads(packed, branch, chain)


def _leave_qkv(d_packed: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of a projection's input ``[M, D]``, from that of its output ``[M, 3*H*d]``."""
    parts = fp8.parts_for(d_packed)
    return fp8.product(parts.quantize(d_packed), parts.quantize_columns(weight), None, d_packed.dtype)


def _enter_mlp(
    x: Tensor, y: Tensor | None, tensors: Tensors, branch: MlpPlan, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Return a branch's input; that normalized, for the adapter; what the MLP and the adapter activate."""
    parts, down_w, down_b = fp8.parts_for(x), tensors[8], tensors[9]
    x, h, scaled = parts.layer_norm(x, y, tensors[0], tensors[1], branch.eps, dtype if branch.adapter else None)
    pre = fp8.product(scaled, parts.quantize(_require(tensors[2])), _to(tensors[3], dtype), dtype)  # [M, K]
    units = None if h is None else _linear(h, _require(down_w).to(dtype), _to(down_b, dtype))  # [M, W]
    return x, h, pre, units
