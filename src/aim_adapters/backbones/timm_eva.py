"""The descriptor of timm's ``Eva``: EVA, EVA-02, DINOv3, Perception Encoder and rotary ViTs, pre-norm and post-norm.

Rotary positions are spatial. A token has the same position in all frames, so they would cancel along time and are not
applied there.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy, BlockAnatomy, HeadAnatomy, Positions, require_type
from aim_adapters.backbones._attention import refuse_masks
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
    """Return the anatomy of a timm ``Eva``; None for other models.

    Args:
        model: Any module.

    Raises:
        UnsupportedModelError: A block or its attention is of another type.
    """
    from timm.layers import AttentionRope
    from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm

    if not isinstance(model, Eva):
        return None
    kinds: dict[type, BlockAnatomy] = {EvaBlock: _BLOCK, EvaBlockPostNorm: _POST_NORM_BLOCK}
    for index, block in enumerate(model.blocks):
        require_type(model.blocks, str(index), tuple(kinds), where="blocks")
        require_type(block, "attn", (EvaAttention, AttentionRope), where=f"blocks.{index}")
    return BackboneAnatomy(
        family="timm_eva",
        blocks=tuple((f"blocks.{i}", kinds[type(block)]) for i, block in enumerate(model.blocks)),
        block_widths=(model.embed_dim,) * len(model.blocks),
        entry="norm_pre",
        entry_side="input",
        norm=final_norm(model),
        heads=(HeadAnatomy("head"),),
        output_width=model.embed_dim,
        prefix_tokens=model.num_prefix_tokens,
        class_token=model.cls_token is not None,
        **common_fields(model),
    )


def _attend(
    block: Any, h: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    refuse_masks(attn_mask=attn_mask, is_causal=is_causal)
    out: Tensor = block.attn(h, rope=rope)
    return out


def _positions(
    block: Any, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Positions | None:
    refuse_masks(attn_mask=attn_mask, is_causal=is_causal)
    if rope is None:
        return None
    sin, cos = rope.chunk(2, -1)  # [(H,) N', d]
    return Positions("halves" if getattr(block.attn, "rotate_half", False) else "interleaved", sin, cos)


_BLOCK = block_anatomy(_attend, scales=("gamma_1", "gamma_2"), positions=_positions)
_POST_NORM_BLOCK = post_norm(_BLOCK)

BACKBONE = Backbone(
    name="timm_eva",
    library="timm",
    describes="timm Eva (EVA, EVA-02, DINOv3, Perception Encoder, rotary ViT)",
    read=read,
    build=build,
    hub_id=hub_id,
    names=partial(names, "eva"),
    classifier=classifier,
)
