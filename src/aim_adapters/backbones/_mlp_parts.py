"""The weights of an MLP branch: two layers around an activation, gated or not, perhaps with a norm behind it."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from aim_adapters.anatomy import BlockAnatomy, Derived, MlpParts
from aim_adapters.backbones._layers import (
    NormParts,
    UnknownPart,
    front_norm,
    full_name,
    read_activation,
    read_linear,
    read_norm,
    read_scale,
    refuse_hooks,
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
# Gated ones with a layer each for what is activated and for what that multiplies: their names, the activation's, and
# those of the layers behind.
_GATES = ("gate_proj", "act_fn", "up_proj", "down_proj")
_GATED = {
    "timm.layers.mlp.SwiGLU": ("fc1_g", "act", "fc1_x", "norm", "fc2"),
    "transformers.models.aimv2.modeling_aimv2.Aimv2MLP": _GATES,
    "transformers.models.dinov2.modeling_dinov2.Dinov2SwiGLUFFN": _GATES,
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersSwiGLUFFN": _GATES,
    "transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTGatedMLP": _GATES,
}


class _Gate(NamedTuple):
    """Weight and bias of the layer of a gated MLP that is activated; None where the MLP is not gated."""

    weight: Tensor | Derived | None = None
    bias: Tensor | Derived | None = None


class _Layers(NamedTuple):
    """The layers of an MLP.

    Attributes:
        gate: The layer that is activated, where another is not.
        weight: Of the first layer.
        bias: The same.
        activation: Its kind.
        behind: The layers behind the activation.
    """

    gate: _Gate
    weight: Tensor | Derived
    bias: Tensor | Derived | None
    activation: str
    behind: list[Any]


def mlp_parts(block: Any, anatomy: BlockAnatomy) -> MlpParts:
    """Return the weights of a block's MLP branch.

    Args:
        block: The block.
        anatomy: Its anatomy.

    Raises:
        UnknownPart: The branch has parts that are not known, or that have hooks.
    """
    mlp = getattr(block, anatomy.mlp)
    refuse_hooks(mlp, anatomy.mlp)
    norm = front_norm(block, anatomy.pre_mlp)
    gate, weight, bias, activation, behind = _layers(mlp)
    *norms, last = behind
    out_weight, out_bias = read_linear(last)
    units = weight.shape[0]
    if out_weight.shape[1] != units:
        raise UnknownPart("its MLP is gated")
    if gate.weight is not None and gate.weight.shape[0] != units:
        raise UnknownPart("its MLP's two first layers differ in width")
    inner = read_norm(norms[0], "norm", _unknown(mlp), units) if norms else NormParts()
    return MlpParts(
        norm.weight,
        norm.bias,
        weight,
        bias,
        out_weight,
        out_bias,
        read_scale(block, anatomy.post_mlp),
        norm.eps,
        activation,
        norm=norm.kind,
        gate_weight=gate.weight,
        gate_bias=gate.bias,
        inner_norm=inner.kind,
        inner_eps=inner.eps,
        inner_weight=inner.weight,
        inner_bias=inner.bias,
    )


def _layers(mlp: Any) -> _Layers:
    name = full_name(mlp)
    if name == "timm.layers.mlp.GluMlp":
        return _packed(mlp.fc1, read_activation(mlp.act), _without_inert([mlp.norm, mlp.fc2]), gate_last=mlp.gate_last)
    if name in _GATED:
        if hasattr(mlp, "weights_in"):  # of older versions of transformers
            return _packed(mlp.weights_in, "silu", [mlp.weights_out], gate_last=False)
        gate, act, value, *behind = (getattr(mlp, each) for each in _GATED[name])
        return _Layers(_Gate(*read_linear(gate)), *read_linear(value), read_activation(act), _without_inert(behind))
    layers = []
    if name in _SEQUENCES:
        layers = _without_inert(list(mlp))
    elif name in _MLPS:
        layers = _without_inert([getattr(mlp, each) for each in _MLPS[name]])
    if len(layers) not in (3, 4):
        raise UnknownPart(_unknown(mlp))
    first, act, *behind = layers
    return _Layers(_Gate(), *read_linear(first), read_activation(act), behind)


def _without_inert(layers: list[Any]) -> list[Any]:
    return [layer for layer in layers if not isinstance(layer, (nn.Dropout, nn.Identity))]


def _packed(first: Any, activation: str, behind: list[Any], *, gate_last: bool) -> _Layers:
    """Return the layers of a gated MLP whose first two are one."""
    weight, bias = read_linear(first)
    halves = [_Gate(_half(weight, index), None if bias is None else _half(bias, index)) for index in (0, 1)]
    gate, value = halves[::-1] if gate_last else halves
    assert value.weight is not None
    return _Layers(gate, value.weight, value.bias, activation, behind)


def _half(tensor: Tensor, index: int) -> Derived:
    rows, *rest = tensor.shape
    return Derived(partial(_rows, index), (tensor,), (rows // 2, *rest))


def _rows(index: int, tensor: Tensor) -> Tensor:
    return tensor.chunk(2)[index]


def _unknown(mlp: Any) -> str:
    return f"its MLP is a {type(mlp).__name__}, not two layers around an activation"
