"""The descriptor of DINOv2 (with and without registers) and DINOv3 ViT of transformers."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy, HeadAnatomy, Positions
from aim_adapters.backbones._parts import placed_parts
from aim_adapters.backbones._transformers import (
    attend_attention,
    block_anatomy,
    build,
    call,
    classifier,
    hub_id,
    labels,
    read_tower,
)
from aim_adapters.backbones.descriptor import Backbone


def read(model: nn.Module) -> BackboneAnatomy | None:
    """Return the anatomy of a DINOv2 or DINOv3 ViT of transformers; None for other models.

    Args:
        model: Any module.

    Raises:
        UnsupportedModelError: A block or its attention is of another type.
    """
    from transformers.models.dinov2 import modeling_dinov2 as v2
    from transformers.models.dinov2_with_registers import modeling_dinov2_with_registers as registers
    from transformers.models.dinov3_vit import modeling_dinov3_vit as v3

    v2_types = (v2.Dinov2Layer, v2.Dinov2Attention)
    registers_types = (registers.Dinov2WithRegistersLayer, registers.Dinov2WithRegistersAttention)
    v3_types = (v3.DINOv3ViTLayer, v3.DINOv3ViTAttention)
    for cls, tower, layers, norm, types in (
        (v2.Dinov2Model, "", "encoder.layer", "layernorm", v2_types),
        (v2.Dinov2ForImageClassification, "dinov2", "encoder.layer", "layernorm", v2_types),
        (registers.Dinov2WithRegistersModel, "", "encoder.layer", "layernorm", registers_types),
        (
            registers.Dinov2WithRegistersForImageClassification,
            "dinov2_with_registers",
            "encoder.layer",
            "layernorm",
            registers_types,
        ),
        (v3.DINOv3ViTModel, "", "model.layer", "norm", v3_types),
    ):
        if isinstance(model, cls):
            return read_tower(
                model,
                family="transformers_dino",
                tower=tower,
                layers=layers,
                block=_ROTARY_BLOCK if types is v3_types else _BLOCK,
                types=types,
                entry=("embeddings", "output"),
                norm=norm,
                heads=(HeadAnatomy("classifier"),) if tower else (),
                prefix_tokens=1 + getattr(model.config, "num_register_tokens", 0),
            )
    return None


_BLOCK = block_anatomy(
    attend_attention,
    attention="attention",
    norms=("norm1", "norm2"),
    after=(("layer_scale1", "drop_path"), ("layer_scale2", "drop_path")),
)


def _positions(
    block: Any,
    attention_mask: Tensor | None = None,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **options: Any,
) -> Positions | str | None:
    if attention_mask is not None or any(option is not None for option in options.values()):
        return "its attention got a mask or options, which its own modules read"
    if position_embeddings is None:
        return None
    cos, sin = position_embeddings  # [N', d]
    return Positions("halves", sin, cos)


_ROTARY_BLOCK = dataclasses.replace(_BLOCK, parts=placed_parts, positions=_positions)

BACKBONE = Backbone(
    name="transformers_dino",
    library="transformers",
    describes="DINOv2 and DINOv3 ViT of transformers",
    read=read,
    build=build,
    hub_id=hub_id,
    call=call,
    labels=labels,
    classifier=classifier,
)
