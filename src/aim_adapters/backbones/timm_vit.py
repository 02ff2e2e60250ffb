"""The descriptor of timm's ``VisionTransformer`` (and its distilled subclass) with ``Block`` or ``ResPostBlock``.

Class-token, average, attention and register-token pooling, LayerScale, query/key norm, pre-norm and dynamic image size
need no special case: the final norm and the head are the modules that the model itself uses.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy, BlockAnatomy, HeadAnatomy, require_type
from aim_adapters.backbones._attention import refuse_masks
from aim_adapters.backbones._parts import plain_parts
from aim_adapters.backbones._timm import (
    block_anatomy,
    build,
    classifier,
    common_fields,
    final_norm,
    hub_id,
    names,
    post_norm,
)
from aim_adapters.backbones.descriptor import Backbone


def read(model: nn.Module) -> BackboneAnatomy | None:
    """Return the anatomy of a timm ``VisionTransformer``; None for other models.

    Args:
        model: Any module.

    Raises:
        UnsupportedModelError: A block or its attention is of another type.
    """
    from timm.layers import Attention
    from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer

    if not isinstance(model, VisionTransformer):
        return None
    kinds: dict[type, BlockAnatomy] = {Block: _BLOCK, ResPostBlock: _POST_NORM_BLOCK}
    for index, block in enumerate(model.blocks):
        require_type(model.blocks, str(index), tuple(kinds), where="blocks")
        require_type(block, "attn", (Attention,), where=f"blocks.{index}")
    return BackboneAnatomy(
        family="timm_vit",
        blocks=tuple((f"blocks.{i}", kinds[type(block)]) for i, block in enumerate(model.blocks)),
        block_widths=(model.embed_dim,) * len(model.blocks),
        entry="norm_pre",
        entry_side="input",
        norm=final_norm(model),
        heads=tuple(HeadAnatomy(name, name) for name in ("head", "head_dist") if hasattr(model, name)),
        output_width=model.embed_dim,
        prefix_tokens=model.num_prefix_tokens,
        class_token=model.cls_token is not None,
        class_token_only=reads_class_token if type(model) is VisionTransformer else None,
        **common_fields(model),
    )


def reads_class_token(model: Any) -> bool:
    """Return whether a timm ``VisionTransformer`` pools only the first token.

    Args:
        model: A ``VisionTransformer`` itself; a subclass may read other tokens.
    """
    return bool(model.global_pool == "token" and model.attn_pool is None)


def _attend(block: Any, h: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    refuse_masks(attn_mask=attn_mask, is_causal=is_causal)
    out: Tensor = block.attn(h)
    return out


_BLOCK = block_anatomy(_attend, scales=("ls1", "ls2"), parts=plain_parts)

_POST_NORM_BLOCK = post_norm(_BLOCK)

BACKBONE = Backbone(
    name="timm_vit",
    library="timm",
    describes="timm VisionTransformer with Block (ViT, DeiT, CLIP, SigLIP, DINOv2)",
    read=read,
    build=build,
    hub_id=hub_id,
    names=partial(names, "vision_transformer", "deit", "vision_transformer_hybrid"),
    classifier=classifier,
)
