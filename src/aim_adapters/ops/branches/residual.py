"""Compute residual branches around frozen layers, forwards and backwards, outside of autograd.

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

from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from aim_adapters.ops.bottleneck import aten as aten_bottleneck
from aim_adapters.ops.bottleneck import padded
from aim_adapters.ops.branches.attention import attend, attend_backward
from aim_adapters.ops.branches.plan import AttentionPlan, ChainPlan, MlpPlan
from aim_adapters.ops.frozen import aten as aten_frozen

Tensors = Sequence[Tensor | None]
EnterQKV = Callable[[Tensor, "Tensor | None", Tensors, AttentionPlan, ChainPlan], "tuple[Tensor, Tensor]"]
LeaveQKV = Callable[[Tensor, Tensor], Tensor]
# PyTorch 2.8 and later return float32 from products of half precision.
_WIDE_PRODUCTS = "dtype" in torch.ops.aten.mm.overloads()


def parts_for(x: Tensor) -> tuple[ModuleType, ModuleType]:
    """Return the row-wise parts of frozen layers and of adapters for a device."""
    if not x.is_cuda:
        return aten_frozen, aten_bottleneck
    from aim_adapters.ops.bottleneck import triton as bottleneck  # not at the top: these import Triton
    from aim_adapters.ops.frozen import triton as frozen

    return frozen, bottleneck


def attention_forward(
    x: Tensor,
    y: Tensor | None,
    tensors: Tensors,
    branch: AttentionPlan,
    chain: ChainPlan,
    *,
    keep: str,
    enter: EnterQKV | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Compute an attention branch.

    Args:
        x: Tokens ``[M, D]``, contiguous.
        y: What the branch in front of it adds to them ``[M, D]``, or None.
        tensors: As `ATTENTION_FROZEN`, the factor of each clip, and `TRAINED` name them.
        branch: The branch.
        chain: The chain it is in.
        keep: ``"fast"`` or ``"balanced"``, what is kept; ``""``: nothing.
        enter: Adds, normalizes and projects, in place of what does so in the compute dtype.

    Returns:
        The branch's input ``x + y``; what it adds to that, ``[M, D]``; what the backward pass finds.
    """
    bottleneck, dtype = parts_for(x)[1], chain.compute_dtype
    factor, down_w, down_b, up_w, up_b, bias = tensors[7:13]
    x, qkv = (enter or _enter_qkv)(x, y, tensors, branch, chain)
    out_w, out_b = _output(tensors, dtype)
    width, hidden = out_w.shape[1], padded(up_w.shape[1]) if up_w is not None else 0
    if branch.over != "frames":
        wide = qkv.new_empty((len(x), width + hidden))  # attended values, and the adapter's hidden layer beside them
        rows = wide[:, :width]
        kept = [wide, attend(qkv, bias, branch, chain.num_frames, windows=tensors[13:], out=_heads(rows, qkv))[1]]
    else:
        rows, kept = attend(qkv, bias, branch, chain.num_frames)[0].view(len(x), width), []
        wide = qkv.new_empty((len(x), hidden))
    if branch.adapter:
        assert down_w is not None and down_b is not None and up_w is not None and up_b is not None
        low_w, low_b = down_w.to(dtype), down_b.to(dtype)
        composed = low_w @ out_w  # [W, H*d]
        composed_b = low_b if out_b is None else torch.addmv(low_b, low_w, out_b)
        pre = torch.addmm(composed_b, rows, composed.T)  # [M, W]
        bottleneck.hidden(pre, wide[:, -hidden:], factor, chain.rows_per_clip, 1.0)
        kept += [pre, composed]
        y = _linear(
            wide, bottleneck.widened(out_w if branch.skip else None, up_w, up_b, dtype), out_b if branch.skip else None
        )  # [M, D]
    else:
        y = _linear(rows, out_w, out_b)
    if branch.keeps_packed(keep):
        kept.append(qkv)
    return x, y, [each for each in kept if each is not None] if keep else []


def attention_backward(
    d_out: Tensor,
    x: Tensor,
    tensors: Tensors,
    kept: list[Tensor],
    branch: AttentionPlan,
    chain: ChainPlan,
    *,
    needs_input: bool,
    enter: EnterQKV | None = None,
    leave: LeaveQKV | None = None,
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
        enter: As in `attention_forward`.
        leave: Multiplies the gradient of the projection's output by the frozen weight, in place of what does so in the
            compute dtype.
    """
    (frozen, bottleneck), dtype = parts_for(x), chain.compute_dtype
    factor, down_w, _, up_w, up_b, bias = tensors[7:13]
    d_low = d_out.to(dtype)
    out_w, out_b = _output(tensors, dtype)
    width, kept = out_w.shape[1], list(kept)
    wide, lse = (None, None) if branch.over == "frames" else (kept.pop(0), kept.pop(0))
    gradients: list[Tensor | None] = [None] * 5
    if branch.adapter:
        assert down_w is not None and up_w is not None and up_b is not None
        pre, composed = kept.pop(0), kept.pop(0)
        d_wide, d_pre = _out_of(d_low, bottleneck.widened(out_w if branch.skip else None, up_w, up_b, dtype), up_w)
        hidden = d_low.new_empty((len(x), padded(len(down_w)))) if wide is None else wide[:, width:]
        sums = bottleneck.hidden_backward(
            d_pre, pre, hidden if wide is None else None, factor, chain.rows_per_clip, 1.0
        )
        d_up = _product(d_low.T, hidden)  # [D, P]
        del hidden, pre
        d_o = d_wide[:, :width].addmm_(d_pre, composed) if branch.skip else d_pre @ composed  # [M, H*d]
    else:
        d_o = d_low @ out_w
    qkv = kept.pop(0) if kept else (enter or _enter_qkv)(x, None, tensors, branch, chain)[1]
    o = None if wide is None else _heads(wide[:, :width], qkv)
    d_qkv, o, d_bias = attend_backward(
        _heads(d_o, qkv), qkv, bias, o, lse, branch, chain.num_frames, windows=tensors[13:]
    )
    del d_o, qkv
    if branch.adapter:
        d_composed = d_pre.T @ (o.view(len(x), width) if wide is None else wide[:, :width])  # [W, H*d]
        gradients[:4] = bottleneck.gradients(_product(d_composed, out_w.T), sums, d_up, out_b)
        del d_pre, d_wide
    gradients[4] = d_bias
    del o, wide
    d_x = None
    if needs_input:
        qkv_w = _require(tensors[2])
        d_h = (leave or _leave_qkv)(d_qkv.view(len(x), len(qkv_w)), qkv_w)  # [M, D]
        del d_qkv
        d_x = frozen.layer_norm_backward(d_h, x, tensors[0], branch.eps, d_out)
    return d_x, _in_dtypes(gradients, tensors)


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
    (frozen, bottleneck), dtype = parts_for(x), chain.compute_dtype
    factor, _, _, up_w, up_b, _ = tensors[7:13]
    x, h = _enter(x, y, tensors, branch.eps, dtype)
    pre = _linear(h, *_first(tensors, dtype))  # [M, K (+ W)]
    del h
    out_w, out_b = _output(tensors, dtype)
    width = out_w.shape[1]
    if branch.adapter:
        assert up_w is not None and up_b is not None
        act = pre.new_empty((len(x), width + padded(up_w.shape[1])))
        frozen.activation(pre[:, :width], branch.activation, out=act[:, :width])
        bottleneck.hidden(pre[:, width:], act[:, width:], factor, chain.rows_per_clip, branch.scale)
        out_w = bottleneck.widened(out_w, up_w, up_b, dtype)
    else:
        act = frozen.activation(pre, branch.activation)
    kept = [pre] if keep == "fast" else []
    del pre
    return x, _linear(act, out_w, out_b), kept


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
    (frozen, bottleneck), dtype = parts_for(x), chain.compute_dtype
    factor, down_w, _, up_w, up_b, _ = tensors[7:13]
    d_low = d_out.to(dtype)
    gradients: list[Tensor | None] = [None] * 5
    h, pre = None, kept[0] if kept else None
    if branch.adapter or pre is None:
        h = _enter(x, None, tensors, branch.eps, dtype)[1]  # [M, D]
    in_w, in_b = _first(tensors, dtype)
    if pre is None:
        pre = _linear(_require(h), in_w, in_b)  # [M, K (+ W)]
    out_w = _output(tensors, dtype)[0]
    width = out_w.shape[1]
    if branch.adapter:
        assert h is not None and down_w is not None and up_w is not None and up_b is not None
        d_wide, d_hidden = _out_of(d_low, bottleneck.widened(out_w, up_w, up_b, dtype), up_w)
        d_pre, hidden = d_wide[:, : width + len(down_w)], d_low.new_empty((len(x), padded(len(down_w))))
        sums = bottleneck.hidden_backward(d_hidden, pre[:, width:], hidden, factor, chain.rows_per_clip, branch.scale)
        gradients[:4] = bottleneck.gradients(_product(d_hidden.T, h), sums, _product(d_low.T, hidden), None)
        del h, hidden
    else:
        d_pre = d_low @ out_w  # [M, K]
    d_x = None
    if needs_input:
        frozen.activation_backward(d_pre[:, :width], pre[:, :width], branch.activation)
        del pre
        d_h = d_pre @ in_w  # [M, D]
        d_x = frozen.layer_norm_backward(d_h, x, tensors[0], branch.eps, d_out)
    return d_x, _in_dtypes(gradients, tensors)


def _enter(x: Tensor, y: Tensor | None, tensors: Tensors, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a branch's input and that normalized."""
    frozen = parts_for(x)[0]
    if y is None:
        return x, frozen.layer_norm(x, tensors[0], tensors[1], eps, dtype)
    total, h = frozen.add_layer_norm(x, y, tensors[0], tensors[1], eps, dtype)
    return total, h


def _enter_qkv(
    x: Tensor, y: Tensor | None, tensors: Tensors, branch: AttentionPlan, chain: ChainPlan
) -> tuple[Tensor, Tensor]:
    """Return a branch's input, and queries, keys and values ``[B*T, N, 3, H, d]``."""
    x, h = _enter(x, y, tensors, branch.eps, chain.compute_dtype)
    weight, bias = _require(tensors[2]).to(h.dtype), _to(tensors[3], h.dtype)
    return x, as_heads(_linear(h, weight, bias), branch, chain)


def _leave_qkv(d_packed: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of a projection's input ``[M, D]``, from that of its output ``[M, 3*H*d]``."""
    return d_packed @ weight.to(d_packed.dtype)


def as_heads(packed: Tensor, branch: AttentionPlan, chain: ChainPlan) -> Tensor:
    """Return a packed projection ``[M, 3*H*d]`` as ``[B*T, N, 3, H, d]``."""
    return packed.view(-1, chain.tokens, 3, branch.heads, packed.shape[1] // (3 * branch.heads))


def _heads(rows: Tensor, qkv: Tensor) -> Tensor:
    """Return rows ``[M, H*d]`` as ``[B*T, N, H, d]``."""
    heads: Tensor = rows.unflatten(0, qkv.shape[:2]).unflatten(-1, qkv.shape[3:])
    return heads


def _output(tensors: Tensors, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a frozen output projection with the LayerScale behind it."""
    weight, bias, gamma = _require(tensors[4]), tensors[5], tensors[6]
    if gamma is not None:
        weight, bias = gamma.unsqueeze(-1) * weight, None if bias is None else gamma * bias
    return weight.to(dtype), _to(bias, dtype)


def _first(tensors: Tensors, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return the first layer of an MLP, with the adapter's down-projection below it if there is one."""
    weight, bias, down_w, down_b = _require(tensors[2]), tensors[3], tensors[8], tensors[9]
    if down_w is None or down_b is None:
        return weight.to(dtype), _to(bias, dtype)
    both, biases = parts_for(weight)[1].joined(weight, bias, down_w, down_b, dtype)
    return both, biases


def _out_of(d: Tensor, widened: Tensor, up_w: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of what `widened` weights multiply, up to the adapter's units, and of these units alone."""
    units = up_w.shape[1]
    first = widened.shape[1] - padded(units)
    d_wide = d @ widened[:, : first + -(-units // 8) * 8]  # rows a multiple of 16 bytes long: others take a slow path
    return d_wide, d_wide[:, first : first + units]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b``, in float32 where a product of half precision can be returned so without a copy."""
    if a.is_cuda and a.dtype.itemsize == 2 and _WIDE_PRODUCTS:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b


def _in_dtypes(gradients: list[Tensor | None], tensors: Tensors) -> list[Tensor | None]:
    trained = tensors[8:13]
    return [None if g is None else g.to(_require(t).dtype) for g, t in zip(gradients, trained, strict=True)]


def _require(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def _to(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)
