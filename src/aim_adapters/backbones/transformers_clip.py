"""The descriptor of CLIP, SigLIP and SigLIP 2 of transformers: image towers, whole models, and image classifiers."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from aim_adapters.anatomy import BackboneAnatomy, HeadAnatomy
from aim_adapters.backbones._transformers import (
    attend_self_attn,
    block_anatomy,
    build,
    call,
    classifier,
    hub_id,
    identity,
    labels,
    read_tower,
)
from aim_adapters.backbones.descriptor import Backbone


def read(model: nn.Module) -> BackboneAnatomy | None:
    """Return the anatomy of a CLIP or SigLIP of transformers; None for other models.

    Args:
        model: Any module.

    Raises:
        UnsupportedModelError: A block or its attention is of another type.
    """
    from transformers.models.clip import modeling_clip as clip
    from transformers.models.siglip import modeling_siglip as siglip
    from transformers.models.siglip2 import modeling_siglip2 as siglip2

    for whole in (clip.CLIPModel, siglip.SiglipModel, siglip2.Siglip2Model):
        if isinstance(model, whole):
            anatomy = read(model.vision_model)
            return anatomy and dataclasses.replace(anatomy, root="vision_model", whole_model=True, **identity(model))
    head = (HeadAnatomy("classifier"),)
    clip_tower: dict[str, Any] = {
        "types": (clip.CLIPEncoderLayer, clip.CLIPAttention),
        "entry": ("pre_layrnorm", "input"),
        "norm": "post_layernorm",
        "prefix_tokens": 1,
    }
    siglip_tower: dict[str, Any] = {
        "types": (siglip.SiglipEncoderLayer, siglip.SiglipAttention),
        "entry": ("embeddings", "output"),
        "norm": "post_layernorm",
        "prefix_tokens": 0,
    }
    if isinstance(model, clip.CLIPVisionModel):
        return _read(model, "", **clip_tower)
    if isinstance(model, clip.CLIPVisionModelWithProjection):
        return _read(model, "vision_model", **clip_tower)
    if isinstance(model, clip.CLIPForImageClassification):
        # It averages patch tokens before the final norm, so nothing reads the norm's output.
        return _read(model, "vision_model", heads=head, **{**clip_tower, "norm": None})
    if isinstance(model, siglip.SiglipVisionModel):
        return _read(model, "", **siglip_tower)
    if isinstance(model, siglip.SiglipForImageClassification):
        return _read(model, "vision_model", heads=head, **siglip_tower)
    siglip2_tower: dict[str, Any] = {
        **siglip_tower,
        "types": (siglip2.Siglip2EncoderLayer, siglip2.Siglip2Attention),
        "patch_inputs": ("pixel_attention_mask", "spatial_shapes"),
    }
    if isinstance(model, siglip2.Siglip2VisionModel):
        return _read(model, "", **siglip2_tower)
    if isinstance(model, siglip2.Siglip2ForImageClassification):
        return _read(model, "vision_model", heads=head, **siglip2_tower)
    return None


def _read(model: Any, tower: str, **fields: Any) -> BackboneAnatomy:
    return read_tower(model, family="transformers_clip", tower=tower, layers="encoder.layers", block=_BLOCK, **fields)


_BLOCK = block_anatomy(attend_self_attn, attention="self_attn", norms=("layer_norm1", "layer_norm2"))

BACKBONE = Backbone(
    name="transformers_clip",
    library="transformers",
    describes="CLIP, SigLIP and SigLIP 2 of transformers",
    read=read,
    build=build,
    hub_id=hub_id,
    call=call,
    labels=labels,
    classifier=classifier,
)
