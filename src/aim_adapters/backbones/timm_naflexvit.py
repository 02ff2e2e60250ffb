"""The descriptor of timm's ``NaFlexVit``, with the blocks of ``VisionTransformer`` or of ``Eva``.

It takes images, or patches cut beforehand with ``patch_coord`` and ``patch_valid``. Of the latter, the mask that keeps
padding out applies to attention over tokens. Along time none is needed: padding lies at the same places in all frames
of a clip, which is checked, and so attends to padding alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy, BlockAnatomy, HeadAnatomy, Positions, require_type
from aim_adapters.backbones._attention import refuse_masks
from aim_adapters.backbones._parts import plain_parts
from aim_adapters.backbones._timm import block_anatomy, build, classifier, common_fields, final_norm, hub_id, names
from aim_adapters.backbones.descriptor import Backbone
from aim_adapters.errors import UnsupportedModelError


def read(model: nn.Module) -> BackboneAnatomy | None:
    """Return the anatomy of a timm ``NaFlexVit``; None for other models.

    Args:
        model: Any module.

    Raises:
        UnsupportedModelError: A block or its attention is of another type, or patches are dropped in training.
    """
    from timm.layers import Attention, AttentionRope
    from timm.models.eva import EvaAttention, EvaBlock
    from timm.models.naflexvit import NaFlexVit
    from timm.models.vision_transformer import Block

    if not isinstance(model, NaFlexVit):
        return None
    patch_drop: Any = model.patch_drop
    if patch_drop is not None:
        raise UnsupportedModelError(
            "patch_drop drops patches in training, which a frozen NaFlexVit cannot leave out; expected none: build the "
            "model with patch_drop_rate=0"
        )
    attentions: dict[type, tuple[type, ...]] = {Block: (Attention,), EvaBlock: (EvaAttention, AttentionRope)}
    blocks: list[tuple[str, BlockAnatomy]] = []
    for index, block in enumerate(model.blocks):
        require_type(model.blocks, str(index), tuple(attentions), where="blocks")
        require_type(block, "attn", attentions[type(block)], where=f"blocks.{index}")
        blocks.append((f"blocks.{index}", _BLOCK if type(block) is Block else _EVA_BLOCK))
    return BackboneAnatomy(
        family="timm_naflexvit",
        blocks=tuple(blocks),
        block_widths=(model.embed_dim,) * len(blocks),
        entry="norm_pre",
        entry_side="input",
        norm=final_norm(model),
        heads=(HeadAnatomy("head"),),
        output_width=model.embed_dim,
        prefix_tokens=model.num_prefix_tokens,
        class_token=model.has_class_token,
        class_token_only=_reads_class_token if type(model) is NaFlexVit else None,
        optional_patch_inputs=("patches", "patch_coord", "patch_valid"),
        refused_inputs=("attn_mask",),
        **_common_fields(model),
    )


def _common_fields(model: Any) -> dict[str, Any]:
    cfg: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    fields = common_fields(model, embedding="embeds")
    # Any size goes, so timm's record of the weights says what they were trained on.
    size = model.embeds.default_img_size or (cfg.get("input_size") or ())[1:] or None
    arguments = dict(fields["build_arguments"])
    if size:
        arguments["img_size"] = list(size)
    if (name := cfg.get("architecture")) and not name.startswith("naflexvit_"):
        arguments["use_naflex"] = True  # timm builds it under the name of a VisionTransformer or an Eva
    return {**fields, "image_size": size and tuple(size), "build_arguments": arguments}


def _reads_class_token(model: Any) -> bool:
    return bool(model.global_pool == "token" and model.attn_pool is None)


def _attend(block: Any, h: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    refuse_masks(is_causal=is_causal)
    out: Tensor = block.attn(h, attn_mask=attn_mask)
    return out


def _attend_rotated(
    block: Any, h: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    refuse_masks(is_causal=is_causal)
    out: Tensor = block.attn(h, rope=rope, attn_mask=attn_mask)
    return out


def _positions(
    block: Any, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Positions | str | None:
    refuse_masks(is_causal=is_causal)
    if attn_mask is not None:
        return "its tokens are patches cut beforehand, with a mask of padding"
    if rope is None:
        return None
    if rope.ndim > 3:
        return "its tokens are patches cut beforehand, with places of their own in each frame"
    sin, cos = rope.chunk(2, -1)  # [(H,) N', d]
    return Positions("halves" if getattr(block.attn, "rotate_half", False) else "interleaved", sin, cos)


_BLOCK = block_anatomy(_attend, scales=("ls1", "ls2"), parts=plain_parts)
_EVA_BLOCK = block_anatomy(_attend_rotated, scales=("gamma_1", "gamma_2"), positions=_positions)

BACKBONE = Backbone(
    name="timm_naflexvit",
    library="timm",
    describes="timm NaFlexVit (NaFlex ViT, SigLIP 2 NaFlex, C-RADIO)",
    read=read,
    build=build,
    hub_id=hub_id,
    names=partial(names, "naflexvit"),
    classifier=classifier,
)
