"""The weights of a block's branches, for blocks made of known layers without hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from aim_adapters.anatomy import AttentionParts, BlockAnatomy, BlockParts, Derived, MlpParts, Windows
from aim_adapters.backbones._layers import (
    NormParts,
    UnknownPart,
    front_norm,
    joined,
    read_linear,
    read_norm,
    read_scale,
    refuse_hooks,
)
from aim_adapters.backbones._mlp_parts import mlp_parts

# Libraries whose attention is determined by its layers; a class from elsewhere may do more.
_LIBRARIES = frozenset({"open_clip", "timm", "torch", "torchvision", "transformers"})


def plain_parts(block: Any, anatomy: BlockAnatomy) -> BlockParts:
    """Return the weights of a block whose spatial attention is ``softmax(scale · q·kᵀ) v`` and nothing else.

    Args:
        block: The block.
        anatomy: Its anatomy.
    """
    return _read(block, anatomy, plain=True)


def placed_parts(block: Any, anatomy: BlockAnatomy) -> BlockParts:
    """Return the weights of a block whose spatial attention also uses positions or windows.

    Args:
        block: The block.
        anatomy: Its anatomy.
    """
    return _read(block, anatomy, plain=False)


def windowed_parts(block: Any, anatomy: BlockAnatomy, windows: Callable[[Any], Windows]) -> BlockParts:
    """Return the weights of a block whose spatial attention stays within windows.

    Args:
        block: The block.
        anatomy: Its anatomy.
        windows: Reads them from the block; called last, where its weights are known to be plain tensors.
    """
    return _read(block, anatomy, plain=False, windows=windows)


# Blocks are read while compilers trace: that of PyTorch 2.6 traces neither `_replace` nor `next` with a default.


_ReadWindows = Callable[[Any], Windows]


def _read(block: Any, anatomy: BlockAnatomy, *, plain: bool, windows: _ReadWindows | None = None) -> BlockParts:
    try:
        attention: AttentionParts | str = _attention(block, anatomy, plain=plain, windows=windows)
    except UnknownPart as reason:
        attention = reason.args[0]
    try:
        mlp: MlpParts | str = mlp_parts(block, anatomy)
    except UnknownPart as reason:
        mlp = reason.args[0]
    return BlockParts(attention, mlp)


def _attention(block: Any, anatomy: BlockAnatomy, *, plain: bool, windows: _ReadWindows | None) -> AttentionParts:
    attn = getattr(block, anatomy.attention)
    if type(attn).__module__.partition(".")[0] not in _LIBRARIES:
        raise UnknownPart(f"its attention is a {type(attn).__name__}, which this package does not know")
    refuse_hooks(attn, anatomy.attention)
    for name in ("ln_q", "ln_k", "ln_inner"):
        if (part := _inside(attn, name)) is not None:
            raise UnknownPart(f"its attention has a {type(part).__name__} inside")
    if getattr(attn, "gate", None) is not None or getattr(attn, "head_scale", None) is not None:
        raise UnknownPart("its attention is gated")
    norm = front_norm(block, anatomy.pre_attention)
    weight, bias = _qkv(attn)
    layer = next(getattr(attn, name) for name in ("proj", "out_proj", "o_proj") if hasattr(attn, name))
    heads, width = anatomy.heads(attn), weight.shape[0] // 3
    q, k, inner = (
        _inner_norm(attn, *each) for each in (("q_norm", width // heads), ("k_norm", width // heads), ("norm", width))
    )
    if (q.kind, q.eps, q.weight is None, q.bias is None) != (k.kind, k.eps, k.weight is None, k.bias is None):
        raise UnknownPart("its attention normalizes queries and keys in different ways")
    return AttentionParts(
        norm.weight,
        norm.bias,
        weight,
        bias,
        *read_linear(layer),
        read_scale(block, anatomy.post_attention),
        norm.eps,
        heads,
        anatomy.softmax_scale(attn),
        plain,
        None if windows is None else windows(block),
        norm=norm.kind,
        head_norm=q.kind,
        head_eps=q.eps,
        q_norm_weight=q.weight,
        q_norm_bias=q.bias,
        k_norm_weight=k.weight,
        k_norm_bias=k.bias,
        inner_norm=inner.kind,
        inner_eps=inner.eps,
        inner_weight=inner.weight,
        inner_bias=inner.bias,
    )


def _inside(attn: Any, name: str) -> nn.Module | None:
    part = getattr(attn, name, None)
    return part if isinstance(part, nn.Module) and not isinstance(part, nn.Identity) else None


def _inner_norm(attn: Any, name: str, width: int) -> NormParts:
    norm: Any = _inside(attn, name)
    if norm is None:
        return NormParts()
    return read_norm(norm, name, f"its attention has a {type(norm).__name__} inside", width)


def _qkv(attn: Any) -> tuple[Tensor | Derived, Tensor | Derived | None]:
    if getattr(attn, "in_proj_weight", None) is not None:
        return attn.in_proj_weight, attn.in_proj_bias
    if getattr(attn, "qkv", None) is not None:
        weight, bias = read_linear(attn.qkv)
        if getattr(attn, "q_bias", None) is not None:
            return weight, joined([attn.q_bias, attn.k_bias, attn.v_bias])
        return weight, bias
    layers = [read_linear(getattr(attn, name, None)) for name in ("q_proj", "k_proj", "v_proj")]
    weights, biases = [weight for weight, _ in layers], [bias for _, bias in layers]
    if any(weight.shape != weights[0].shape for weight in weights):
        raise UnknownPart("its attention has fewer key and value heads than query heads")
    packed = joined(weights)
    assert packed is not None
    return packed, joined(biases)
