"""The layers that branches are made of: known classes without hooks, read as weights and settings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aim_adapters.anatomy import Derived, has_hooks

# Classes are named, not imported: their library may not be installed. All of these norms compute in float32 or better.
_LAYER_NORMS = frozenset(
    {
        "torch.nn.modules.normalization.LayerNorm",
        "timm.layers.norm.LayerNorm",
        "timm.layers.norm.LayerNormFp32",
        "open_clip.transformer.LayerNorm",
        "open_clip.transformer.LayerNormFp32",
    }
)
_RMS_NORMS = frozenset(
    {
        "torch.nn.modules.normalization.RMSNorm",
        "timm.layers.norm.RmsNorm",
        "timm.layers.norm.RmsNormFp32",
        "transformers.models.aimv2.modeling_aimv2.Aimv2RMSNorm",
    }
)
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
    "transformers.activations.SiLUActivation": "silu",
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


class UnknownPart(Exception):
    """A part of a branch that cannot be read here."""


class NormParts(NamedTuple):
    """The weights and settings of a norm; its kind is ``""`` where there is none."""

    kind: str = ""
    eps: float = 0.0
    weight: Tensor | None = None
    bias: Tensor | None = None


def read_norm(norm: Any, what: str, reason: str, width: int | None = None) -> NormParts:
    """Return the weights of a norm.

    Args:
        norm: The norm.
        what: Its name.
        reason: What to say of a norm that is not known.
        width: The features that it must normalize over, if that is to be checked.

    Raises:
        UnknownPart: It is not known, or has hooks.
    """
    name = full_name(norm)
    kind = "layer" if name in _LAYER_NORMS else "rms" if name in _RMS_NORMS else ""
    if not kind or (width is not None and _normalized(norm) != (width,)):
        raise UnknownPart(reason)
    refuse_hooks(norm, what)
    eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    if eps is None:
        raise UnknownPart(f"its {what} is a {type(norm).__name__} whose epsilon depends on the dtype of its input")
    return NormParts(kind, float(eps), norm.weight, getattr(norm, "bias", None))


def front_norm(block: Any, name: str | None) -> NormParts:
    """Return the weights of the norm in front of a branch.

    Args:
        block: The block.
        name: Its attribute, or None.

    Raises:
        UnknownPart: There is none, it is not known, or it has hooks.
    """
    norm = None if name is None else getattr(block, name)
    if norm is None:
        raise UnknownPart("it has no LayerNorm in front")
    return read_norm(norm, str(name), f"its norm is a {type(norm).__name__}")


def _normalized(norm: Any) -> tuple[int, ...]:
    return tuple(norm.normalized_shape if hasattr(norm, "normalized_shape") else norm.weight.shape)


def read_linear(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Return weight ``[K, D]`` and bias ``[K]`` of a linear layer.

    Args:
        layer: The layer.

    Raises:
        UnknownPart: It is another layer, has hooks, or holds tensors of another kind.
    """
    if type(layer) not in _LINEARS:
        raise UnknownPart(f"it holds a {type(layer).__name__} in place of a linear layer")
    refuse_hooks(layer, "linear layer")
    if type(layer.weight) not in (Tensor, nn.Parameter):  # checked here, as concatenating would hide it
        if hasattr(layer.weight, "full_tensor"):
            raise UnknownPart("its weights are sharded; inside a step, where FSDP2 has gathered them, it can run fused")
        raise UnknownPart("a weight of the image model is a tensor of another kind, as of a quantized layer")
    return layer.weight, layer.bias


def read_scale(block: Any, names: str | tuple[str, ...] | None) -> Tensor | None:
    """Return the factor on a branch ``[D]``, or None.

    Args:
        block: The block.
        names: Attributes of the parts behind the branch.

    Raises:
        UnknownPart: One is not known or has hooks, or there are several factors.
    """
    gamma: Tensor | None = None
    for name in names if isinstance(names, tuple) else (names,):
        part: Any = None if name is None else getattr(block, name)
        if part is None:
            continue
        if isinstance(part, nn.Module):
            refuse_hooks(part, str(name))
            if full_name(part) in _INERT:
                continue
            if full_name(part) not in _SCALES:
                raise UnknownPart(f"behind its branch comes a {type(part).__name__}")
            part = part.gamma if hasattr(part, "gamma") else part.lambda1
        if gamma is not None:
            raise UnknownPart(f"behind its branch comes more than one factor, {name} the last")
        gamma = part
    return gamma


def read_activation(act: Any) -> str:
    """Return the kind of an activation.

    Args:
        act: The activation.

    Raises:
        UnknownPart: It is not known, or has hooks.
    """
    name = full_name(act)
    if name == "torch.nn.modules.activation.GELU":
        return "gelu" if act.approximate == "none" else "gelu_tanh"
    if name not in _ACTIVATIONS:
        raise UnknownPart(f"its MLP's activation is a {type(act).__name__}")
    refuse_hooks(act, "activation")
    return _ACTIVATIONS[name]


def full_name(module: Any) -> str:
    """Return module and name of a module's class."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def refuse_hooks(module: nn.Module, what: str) -> None:
    """Refuse a module that has hooks, or whose children have.

    Args:
        module: The module.
        what: Its name.

    Raises:
        UnknownPart: It does.
    """
    for part in (module, *module.children()):  # also children that a fused branch skips, such as dropout
        if has_hooks(part):
            raise UnknownPart(f"its {what} has hooks, which a fused branch would not call")


def joined(tensors: Sequence[Tensor | None]) -> Derived | None:
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
