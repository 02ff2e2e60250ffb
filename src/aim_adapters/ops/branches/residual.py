"""Compute residual branches around frozen layers, forwards and backwards, outside of autograd.

Frozen layers need no gradient of their own, so the backward pass keeps no input of theirs: only what the gradient of
the tokens needs. What is cheap to compute again, such as normalised tokens and activations, is computed again.

The adapter's down-projection is composed with the frozen projection in front of it: ``down(W o + b)`` is
``(W_down W) o + (W_down b + b_down)``. Where the adapter has no skip, as along time, a D x D product per token
is gone; where it has one, the projection's output need not be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from aim_adapters.ops.bottleneck import aten as aten_bottleneck
from aim_adapters.ops.branches.attention import attend, attend_backward
from aim_adapters.ops.branches.plan import AttentionPlan, ChainPlan, MlpPlan
from aim_adapters.ops.frozen import aten as aten_frozen

Tensors = Sequence[Tensor | None]
# PyTorch 2.8 and later return float32 from products of half precision.
_WIDE_PRODUCTS = "dtype" in torch.ops.aten.mm.overloads()


def _rows(x: Tensor) -> tuple[ModuleType, ModuleType]:
    """Return the row-wise parts of frozen layers and of adapters for a device."""
    if not x.is_cuda:
        return aten_frozen, aten_bottleneck
    from aim_adapters.ops.bottleneck import triton as bottleneck  # not at the top: these import Triton
    from aim_adapters.ops.frozen import triton as frozen

    return frozen, bottleneck


def attention_forward(
    x: Tensor, tensors: Tensors, branch: AttentionPlan, chain: ChainPlan, *, keep: str
) -> tuple[Tensor, list[Tensor]]:
    """Add an attention branch.

    Args:
        x: Tokens ``[B*T, N, D]``, contiguous.
        tensors: As `ATTENTION_FROZEN`, the factor of each clip, and `TRAINED` name them.
        branch: The branch.
        chain: The chain it is in.
        keep: ``"fast"`` or ``"balanced"``, what is kept; ``""``: nothing.

    Returns:
        Tokens ``[B*T, N, D]``, and what the backward pass finds.
    """
    bottleneck = _rows(x)[1]
    dtype, tokens = chain.compute_dtype, x.flatten(0, -2)  # [M, D]
    factor, down_w, down_b, up_w, up_b, bias = tensors[7:]
    qkv = _project_qkv(x, tensors, branch, dtype)
    o, lse = attend(qkv, bias, branch, chain.num_frames)
    out_w, out_b = _output(tensors, dtype)
    rows = o.view(len(tokens), out_w.shape[1])  # [M, H*d]
    kept = [] if lse is None else [o, lse]
    if branch.adapter:
        assert down_w is not None and down_b is not None and up_w is not None and up_b is not None
        low_w, low_b = down_w.to(dtype), down_b.to(dtype)
        composed = low_w @ out_w  # [W, H*d]
        composed_b = low_b if out_b is None else torch.addmv(low_b, low_w, out_b)
        pre = torch.addmm(composed_b, rows, composed.T)  # [M, W]
        other = _linear(rows, out_w, out_b) if branch.skip else None  # [M, D]
        out = bottleneck.up_add(
            pre, up_w.to(dtype), up_b.to(dtype), tokens, other, factor, chain.num_frames * x.shape[1], 1.0
        )
        kept += [pre, composed]
    else:
        out = tokens + _linear(rows, out_w, out_b)
    if keep == "fast":
        kept.append(qkv)
    return out.view(x.shape), kept if keep else []


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
        d_out: Gradient of the output ``[B*T, N, D]``, contiguous.
        x: The branch's input ``[B*T, N, D]``.
        tensors: As in `attention_forward`.
        kept: What that kept.
        branch: The branch.
        chain: The chain it is in.
        needs_input: The gradient of ``x`` is wanted.
    """
    frozen, bottleneck = _rows(x)
    dtype, tokens = chain.compute_dtype, x.flatten(0, -2)  # [M, D]
    factor, down_w, _, up_w, _, bias = tensors[7:]
    d_tokens = d_out.flatten(0, -2)  # [M, D]
    d_low = d_tokens.to(dtype)
    out_w, out_b = _output(tensors, dtype)
    kept = list(kept)
    o, lse = (None, None) if branch.over == "frames" else (kept.pop(0), kept.pop(0))
    gradients: list[Tensor | None] = [None] * 5
    if branch.adapter:
        pre, composed = kept.pop(0), kept.pop(0)
        assert down_w is not None and up_w is not None
        d_pre, hidden, d_up_b, d_down_b = bottleneck.down_backward(
            d_tokens, up_w.to(dtype), pre, factor, chain.num_frames * x.shape[1], 1.0
        )
        gradients[2:4] = _product(d_low.T, hidden), d_up_b
        del hidden, pre
        d_o = d_pre @ composed  # [M, H*d]
        if branch.skip:
            d_o.addmm_(d_low, out_w)
    else:
        d_o = d_low @ out_w
    qkv = kept.pop(0) if kept else _project_qkv(x, tensors, branch, dtype)
    d_qkv, o, d_bias = attend_backward(
        d_o.view(*qkv.shape[:2], *qkv.shape[3:]), qkv, bias, o, lse, branch, chain.num_frames
    )
    del d_o, qkv
    if branch.adapter:
        d_composed = d_pre.T @ o.view(len(tokens), out_w.shape[1])  # [W, H*d]
        d_down_w = _product(d_composed, out_w.T)  # [W, D]
        if out_b is not None:
            d_down_w.addr_(d_down_b.to(d_down_w.dtype), out_b.to(d_down_w.dtype))
        gradients[:2] = d_down_w, d_down_b
        del d_pre, o
    gradients[4] = d_bias
    d_x = None
    if needs_input:
        qkv_w = _require(tensors[2]).to(dtype)
        d_h = d_qkv.view(len(tokens), len(qkv_w)) @ qkv_w  # [M, D]
        d_x = frozen.layer_norm_backward(d_h, tokens, tensors[0], branch.eps, d_tokens).view(x.shape)
    return d_x, _in_dtypes(gradients, tensors)


def mlp_forward(
    x: Tensor, tensors: Tensors, branch: MlpPlan, chain: ChainPlan, *, keep: str
) -> tuple[Tensor, list[Tensor]]:
    """Add an MLP branch.

    Args:
        x: Tokens ``[B*T, N, D]``, contiguous.
        tensors: As `MLP_FROZEN`, the factor of each clip, and `TRAINED` name them.
        branch: The branch.
        chain: The chain it is in.
        keep: ``"fast"`` or ``"balanced"``, what is kept; ``""``: nothing.

    Returns:
        Tokens ``[B*T, N, D]``, and what the backward pass finds.
    """
    frozen, bottleneck = _rows(x)
    dtype, tokens = chain.compute_dtype, x.flatten(0, -2)  # [M, D]
    factor, down_w, down_b, up_w, up_b, _ = tensors[7:]
    h = frozen.layer_norm(tokens, tensors[0], tensors[1], branch.eps, dtype)  # [M, D]
    in_pre = _linear(h, _require(tensors[2]).to(dtype), _to(tensors[3], dtype))  # [M, K]
    kept = [in_pre] if keep == "fast" else []
    out_w, out_b = _output(tensors, dtype)
    act = frozen.activation(in_pre, branch.activation)
    del in_pre
    other = _linear(act, out_w, out_b)  # [M, D]
    del act
    if branch.adapter:
        assert down_w is not None and down_b is not None and up_w is not None and up_b is not None
        pre = torch.addmm(down_b.to(dtype), h, down_w.to(dtype).T)  # [M, W]
        out = bottleneck.up_add(
            pre, up_w.to(dtype), up_b.to(dtype), tokens, other, factor, chain.num_frames * x.shape[1], branch.scale
        )
        kept.append(pre)
    else:
        out = tokens + other
    return out.view(x.shape), kept if keep else []


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
        d_out: Gradient of the output ``[B*T, N, D]``, contiguous.
        x: The branch's input ``[B*T, N, D]``.
        tensors: As in `mlp_forward`.
        kept: What that kept, or nothing.
        branch: The branch.
        chain: The chain it is in.
        needs_input: The gradient of ``x`` is wanted.
    """
    frozen, bottleneck = _rows(x)
    dtype, tokens = chain.compute_dtype, x.flatten(0, -2)  # [M, D]
    factor, down_w, down_b, up_w, _, _ = tensors[7:]
    d_tokens = d_out.flatten(0, -2)  # [M, D]
    d_low = d_tokens.to(dtype)
    kept = list(kept)
    pre = kept.pop() if branch.adapter and kept else None
    in_pre = kept.pop() if kept else None
    h, d_pre = None, None
    if branch.adapter or (in_pre is None and needs_input):
        h = frozen.layer_norm(tokens, tensors[0], tensors[1], branch.eps, dtype)  # [M, D]
    gradients: list[Tensor | None] = [None] * 5
    if branch.adapter:
        assert h is not None and down_w is not None and down_b is not None and up_w is not None
        if pre is None:
            pre = torch.addmm(down_b.to(dtype), h, down_w.to(dtype).T)
        d_pre, hidden, d_up_b, d_down_b = bottleneck.down_backward(
            d_tokens, up_w.to(dtype), pre, factor, chain.num_frames * x.shape[1], branch.scale
        )
        gradients[:4] = _product(d_pre.T, h), d_down_b, _product(d_low.T, hidden), d_up_b
        del hidden, pre
    if not needs_input:
        return None, _in_dtypes(gradients, tensors)
    in_w = _require(tensors[2]).to(dtype)
    if in_pre is None:
        assert h is not None
        in_pre = _linear(h, in_w, _to(tensors[3], dtype))  # [M, K]
    del h
    d_act = d_low @ _output(tensors, dtype)[0]  # [M, K]
    d_in = frozen.activation_backward(d_act, in_pre, branch.activation)  # [M, K]
    del in_pre, d_act
    d_h = d_in @ in_w  # [M, D]
    del d_in
    if d_pre is not None:
        assert down_w is not None
        d_h.addmm_(d_pre, down_w.to(dtype))
    d_x = frozen.layer_norm_backward(d_h, tokens, tensors[0], branch.eps, d_tokens).view(x.shape)
    return d_x, _in_dtypes(gradients, tensors)


def _project_qkv(x: Tensor, tensors: Tensors, branch: AttentionPlan, dtype: torch.dtype) -> Tensor:
    """Return ``[B*T, N, 3, H, d]``."""
    h = _rows(x)[0].layer_norm(x.flatten(0, -2), tensors[0], tensors[1], branch.eps, dtype)  # [M, D]
    packed = _linear(h, _require(tensors[2]).to(dtype), _to(tensors[3], dtype))  # [M, 3*H*d]
    return packed.view(*x.shape[:2], 3, branch.heads, packed.shape[1] // (3 * branch.heads))


def _output(tensors: Tensors, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a frozen output projection with the LayerScale behind it."""
    weight, bias, gamma = _require(tensors[4]), tensors[5], tensors[6]
    if gamma is not None:
        weight, bias = gamma.unsqueeze(-1) * weight, None if bias is None else gamma * bias
    return weight.to(dtype), _to(bias, dtype)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b``, in float32 where a product of half precision can be returned so without a copy."""
    if a.is_cuda and a.dtype.itemsize == 2 and _WIDE_PRODUCTS:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b


def _in_dtypes(gradients: list[Tensor | None], tensors: Tensors) -> list[Tensor | None]:
    trained = tensors[8:]
    return [None if g is None else g.to(_require(t).dtype) for g, t in zip(gradients, trained, strict=True)]


def _require(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def _to(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)
