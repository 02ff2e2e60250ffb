"""The descriptor of ViT and DeiT of transformers, alone or inside their image classifiers."""

from __future__ import annotations

from torch import nn

from aim_adapters.anatomy import BackboneAnatomy, HeadAnatomy
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
    """Return the anatomy of a ViT or DeiT of transformers; None for other models.

    Args:
        model: Any module.

    Raises:
        UnsupportedModelError: A block or its attention is of another type.
    """
    from transformers.models.deit import modeling_deit as deit
    from transformers.models.vit import modeling_vit as vit

    single, pair = (
        (HeadAnatomy("classifier"),),
        (HeadAnatomy("cls_classifier"), HeadAnatomy("distillation_classifier", "head_dist")),
    )
    for cls, tower, heads in (
        (vit.ViTModel, "", ()),
        (vit.ViTForImageClassification, "vit", single),
        (deit.DeiTModel, "", ()),
        (deit.DeiTForImageClassification, "deit", single),
        (deit.DeiTForImageClassificationWithTeacher, "deit", pair),
    ):
        if isinstance(model, cls):
            is_vit = isinstance(model, (vit.ViTModel, vit.ViTForImageClassification))
            types = (vit.ViTLayer, vit.ViTAttention) if is_vit else (deit.DeiTLayer, deit.DeiTAttention)
            return read_tower(
                model,
                family="transformers_vit",
                tower=tower,
                layers="layers",
                block=_BLOCK,
                types=types,
                entry=("embeddings", "output"),
                norm="layernorm",
                heads=heads,
                prefix_tokens=1 if is_vit else 2,
            )
    return None


_BLOCK = block_anatomy(
    attend_attention,
    attention="attention",
    norms=("layernorm_before", "layernorm_after"),
    after=(("dropout",), ("dropout",)),
)

BACKBONE = Backbone(
    name="transformers_vit",
    library="transformers",
    describes="ViT and DeiT of transformers",
    read=read,
    build=build,
    hub_id=hub_id,
    call=call,
    labels=labels,
    classifier=classifier,
)
