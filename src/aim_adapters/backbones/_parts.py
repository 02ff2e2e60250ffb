"""The weights of a block's branches, for blocks made of known layers without hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aim_adapters.anatomy import (
    AttentionParts,
    BlockAnatomy,
    BlockParts,
    Derived,
    MlpParts,
    Windows,
    has_hooks,
)

# Classes are named, not imported: their library may not be installed. All of these norms compute in float32 or better.
_NORMS = frozenset(
    {
        "torch.nn.modules.normalization.LayerNorm",
        "timm.layers.norm.LayerNorm",
        "timm.layers.norm.LayerNormFp32",
        "open_clip.transformer.LayerNorm",
        "open_clip.transformer.LayerNormFp32",
    }
)
_RMS_NORMS = frozenset(
    {"timm.layers.norm.RmsNorm", "timm.layers.norm.RmsNormFp32", "torch.nn.modules.normalization.RMSNorm"}
)
# Libraries whose attention is determined by its layers; a class from elsewhere may do more.
_LIBRARIES = frozenset({"open_clip", "timm", "torch", "torchvision", "transformers"})
_LINEARS = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
_ACTIVATIONS = {
    "timm.layers.activations.GELU": "gelu",
    "timm.layers.activations.GELUTanh": "gelu_tanh",
    "timm.layers.activations.QuickGELU": "quick_gelu",
    "open_clip.transformer.QuickGELU": "quick_gelu",
    "transformers.activations.GELUActivation": "gelu",
    "transformers.activations.QuickGELUActivation": "quick_gelu",
    "transformers.activations.GELUTanh": "gelu_tanh",
    "transformers.activations.PytorchGELUTanh": "gelu_tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.SiLU": "silu",
}
_SCALES = frozenset(
    {
        "timm.layers.layer_scale.LayerScale",
        "timm.models.vision_transformer.LayerScale",
        "open_clip.transformer.LayerScale",
        "transformers.models.dinov2.modeling_dinov2.Dinov2LayerScale",
        "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersLayerScale",
        "transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTLayerScale",
    }
)
# Parts that change nothing while they are frozen.
_INERT = frozenset(
    {
        "torch.nn.modules.linear.Identity",
        "torch.nn.modules.dropout.Dropout",
        "timm.layers.drop.DropPath",
        "torchvision.ops.stochastic_depth.StochasticDepth",
        "transformers.models.dinov2.modeling_dinov2.Dinov2DropPath",
        "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersDropPath",
        "transformers.models.dinov3_vit.modeling_dinov3_vit.Dinov3ViTDropPath",
    }
)
# MLPs that are a Sequential, and the layers of the other ones by their names.
_SEQUENCES = frozenset(
    {
        "torch.nn.modules.container.Sequential",
        "torchvision.models.vision_transformer.MLPBlock",
        "torchvision.ops.misc.MLP",
    }
)
_NAMES = ("fc1", "activation_fn", "fc2")
_MLPS = {
    "timm.layers.mlp.Mlp": ("fc1", "act", "norm", "fc2"),
    "transformers.models.vit.modeling_vit.ViTMLP": _NAMES,
    "transformers.models.deit.modeling_deit.DeiTMLP": _NAMES,
    "transformers.models.clip.modeling_clip.CLIPMLP": _NAMES,
    "transformers.models.siglip.modeling_siglip.SiglipMLP": _NAMES,
    "transformers.models.siglip2.modeling_siglip2.Siglip2MLP": _NAMES,
    "transformers.models.dinov2.modeling_dinov2.Dinov2MLP": _NAMES,
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersMLP": _NAMES,
    "transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTMLP": ("up_proj", "act_fn", "down_proj"),
}


class _UnknownPart(Exception):
    """A part of a branch that cannot be read here."""


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
    except _UnknownPart as reason:
        attention = reason.args[0]
    try:
        mlp: MlpParts | str = _mlp(block, anatomy)
    except _UnknownPart as reason:
        mlp = reason.args[0]
    return BlockParts(attention, mlp)


def _attention(block: Any, anatomy: BlockAnatomy, *, plain: bool, windows: _ReadWindows | None) -> AttentionParts:
    attn = getattr(block, anatomy.attention)
    if type(attn).__module__.partition(".")[0] not in _LIBRARIES:
        raise _UnknownPart(f"its attention is a {type(attn).__name__}, which this package does not know")
    _refuse_hooks(attn, anatomy.attention)
    for name in ("ln_q", "ln_k", "ln_inner"):
        if (part := _inside(attn, name)) is not None:
            raise _UnknownPart(f"its attention has a {type(part).__name__} inside")
    if getattr(attn, "gate", None) is not None or getattr(attn, "head_scale", None) is not None:
        raise _UnknownPart("its attention is gated")
    weight, bias = _qkv(attn)
    layer = next(getattr(attn, name) for name in ("proj", "out_proj", "o_proj") if hasattr(attn, name))
    heads, width = anatomy.heads(attn), weight.shape[0] // 3
    q, k, inner = (
        _head_norm(attn, *each) for each in (("q_norm", width // heads), ("k_norm", width // heads), ("norm", width))
    )
    if (q.kind, q.eps, q.weight is None, q.bias is None) != (k.kind, k.eps, k.weight is None, k.bias is None):
        raise _UnknownPart("its attention normalizes queries and keys in different ways")
    return AttentionParts(
        *_norm(block, anatomy.pre_attention),
        weight,
        bias,
        *_linear(layer),
        _scale(block, anatomy.post_attention),
        _eps(block, anatomy.pre_attention),
        heads,
        anatomy.softmax_scale(attn),
        plain,
        None if windows is None else windows(block),
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


class _InnerNorm(NamedTuple):
    """A norm inside of an attention; its kind is ``""`` where there is none."""

    kind: str = ""
    eps: float = 0.0
    weight: Tensor | None = None
    bias: Tensor | None = None


def _inside(attn: Any, name: str) -> nn.Module | None:
    part = getattr(attn, name, None)
    return part if isinstance(part, nn.Module) and not isinstance(part, nn.Identity) else None


def _head_norm(attn: Any, name: str, width: int) -> _InnerNorm:
    norm: Any = _inside(attn, name)
    if norm is None:
        return _InnerNorm()
    kind = "layer" if _full_name(norm) in _NORMS else "rms" if _full_name(norm) in _RMS_NORMS else ""
    if not kind or tuple(norm.normalized_shape) != (width,) or norm.eps is None or (name == "norm" and kind != "layer"):
        raise _UnknownPart(f"its attention has a {type(norm).__name__} inside")
    _refuse_hooks(norm, name)
    return _InnerNorm(kind, float(norm.eps), norm.weight, getattr(norm, "bias", None))


def _qkv(attn: Any) -> tuple[Tensor | Derived, Tensor | Derived | None]:
    if getattr(attn, "in_proj_weight", None) is not None:
        return attn.in_proj_weight, attn.in_proj_bias
    if getattr(attn, "qkv", None) is not None:
        weight, bias = _linear(attn.qkv)
        if getattr(attn, "q_bias", None) is not None:
            return weight, _joined([attn.q_bias, attn.k_bias, attn.v_bias])
        return weight, bias
    layers = [_linear(getattr(attn, name, None)) for name in ("q_proj", "k_proj", "v_proj")]
    weights, biases = [weight for weight, _ in layers], [bias for _, bias in layers]
    if any(weight.shape != weights[0].shape for weight in weights):
        raise _UnknownPart("its attention has fewer key and value heads than query heads")
    packed = _joined(weights)
    assert packed is not None
    return packed, _joined(biases)


def _joined(tensors: Sequence[Tensor | None]) -> Derived | None:
    """Return tensors of one shape as one, those that are absent as zeros; None without any."""
    present = [tensor for tensor in tensors if tensor is not None]
    if not present:
        return None
    there = tuple(tensor is not None for tensor in tensors)
    first, *rest = present[0].shape
    return Derived(partial(_join, there), tuple(present), (first * len(tensors), *rest))


def _join(there: tuple[bool, ...], *present: Tensor) -> Tensor:
    if all(there):
        return torch.cat(present)
    given = iter(present)
    return torch.cat([next(given) if each else torch.zeros_like(present[0]) for each in there])


def _mlp(block: Any, anatomy: BlockAnatomy) -> MlpParts:
    mlp = getattr(block, anatomy.mlp)
    _refuse_hooks(mlp, anatomy.mlp)
    layers = []
    if _full_name(mlp) in _SEQUENCES:
        layers = [layer for layer in mlp if not isinstance(layer, (nn.Dropout, nn.Identity))]
    elif _full_name(mlp) in _MLPS:
        names = _MLPS[_full_name(mlp)]
        layers = [getattr(mlp, name) for name in names if not isinstance(getattr(mlp, name), nn.Identity)]
    if len(layers) != 3:
        raise _UnknownPart(f"its MLP is a {type(mlp).__name__}, not two layers around an activation")
    first, act, last = layers
    if first.out_features != last.in_features:
        raise _UnknownPart("its MLP is gated")
    return MlpParts(
        *_norm(block, anatomy.pre_mlp),
        *_linear(first),
        *_linear(last),
        _scale(block, anatomy.post_mlp),
        _eps(block, anatomy.pre_mlp),
        _activation(act),
    )


def _norm(block: Any, name: str | None) -> tuple[Tensor | None, Tensor | None]:
    norm = None if name is None else getattr(block, name)
    if norm is None or _full_name(norm) not in _NORMS:
        raise _UnknownPart("it has no LayerNorm in front" if norm is None else f"its norm is a {type(norm).__name__}")
    _refuse_hooks(norm, str(name))
    return norm.weight, norm.bias


def _eps(block: Any, name: str | None) -> float:
    return float(getattr(block, str(name)).eps)


def _linear(layer: Any) -> tuple[Tensor, Tensor | None]:
    if type(layer) not in _LINEARS:
        raise _UnknownPart(f"it holds a {type(layer).__name__} in place of a linear layer")
    _refuse_hooks(layer, "linear layer")
    if type(layer.weight) not in (Tensor, nn.Parameter):  # checked here, as concatenating would hide it
        if hasattr(layer.weight, "full_tensor"):
            raise _UnknownPart(
                "its weights are sharded; inside a step, where FSDP2 has gathered them, it can run fused"
            )
        raise _UnknownPart("a weight of the image model is a tensor of another kind, as of a quantized layer")
    return layer.weight, layer.bias


def _scale(block: Any, names: str | tuple[str, ...] | None) -> Tensor | None:
    gamma: Tensor | None = None
    for name in names if isinstance(names, tuple) else (names,):
        part: Any = None if name is None else getattr(block, name)
        if part is None:
            continue
        if isinstance(part, nn.Module):
            _refuse_hooks(part, str(name))
            if _full_name(part) in _INERT:
                continue
            if _full_name(part) not in _SCALES:
                raise _UnknownPart(f"behind its branch comes a {type(part).__name__}")
            part = part.gamma if hasattr(part, "gamma") else part.lambda1
        if gamma is not None:
            raise _UnknownPart(f"behind its branch comes more than one factor, {name} the last")
        gamma = part
    return gamma


def _activation(act: Any) -> str:
    name = _full_name(act)
    if name == "torch.nn.modules.activation.GELU":
        return "gelu" if act.approximate == "none" else "gelu_tanh"
    if name not in _ACTIVATIONS:
        raise _UnknownPart(f"its MLP's activation is a {type(act).__name__}")
    _refuse_hooks(act, "activation")
    return _ACTIVATIONS[name]


def _full_name(module: Any) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _refuse_hooks(module: nn.Module, what: str) -> None:
    for part in (module, *module.children()):  # also children that a fused branch skips, such as dropout
        if has_hooks(part):
            raise _UnknownPart(f"its {what} has hooks, which a fused branch would not call")
