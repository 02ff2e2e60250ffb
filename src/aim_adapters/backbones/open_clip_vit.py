"""Describe open_clip's image towers: its own ``VisionTransformer``, timm towers, and whole CLIP models."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy, BlockAnatomy, HeadAnatomy, require_type
from aim_adapters.backbones import Backbone, read_anatomy
from aim_adapters.backbones._attention import (
    inverse_root_scale,
    num_heads,
    project_out,
    project_packed_weights,
    refuse_masks,
    require_plain_multi_head,
)
from aim_adapters.errors import UnsupportedModelError


def read(model: nn.Module) -> BackboneAnatomy | None:
    """Read an open_clip tower or a whole ``CLIP`` / ``CustomTextCLIP``; None for anything else."""
    from open_clip.model import CLIP, CustomTextCLIP
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if isinstance(model, (CLIP, CustomTextCLIP)):
        tower = read(model.visual)
        if tower is None:
            raise UnsupportedModelError(
                f"the image tower of this {type(model).__name__} is a {type(model.visual).__name__}, not a vision "
                "transformer; AIM adapts transformers only"
            )
        return dataclasses.replace(tower, root="visual", whole_model=True)
    if isinstance(model, TimmModel):
        return _read_timm_tower(model)
    return _read_vit(model) if isinstance(model, VisionTransformer) else None


def _read_vit(model: Any) -> BackboneAnatomy:
    from open_clip.transformer import ResidualAttentionBlock

    blocks = model.transformer.resblocks
    for index, block in enumerate(blocks):
        where = f"transformer.resblocks.{index}"
        if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
            raise UnsupportedModelError(
                f"{where} is a {type(block).__module__}.{type(block).__qualname__}"
                f"{' with cross-attention' if hasattr(block, 'ln_1_kv') else ''}, expected exactly open_clip's "
                "ResidualAttentionBlock; describe this block with register_backbone to adapt it"
            )
        require_type(block, "attn", (nn.MultiheadAttention,), where=where)
        require_plain_multi_head(block.attn, where=f"{where}.attn")
    width = model.conv1.out_channels
    # With an attentional pooler the classification layer reads the pooler's output, of another width.
    pooled = width if model.attn_pool is None else model.output_dim
    return BackboneAnatomy(
        family="open_clip_vit",
        root="",
        input_name="x",
        blocks=tuple((f"transformer.resblocks.{i}", _BLOCK) for i in range(len(blocks))),
        block_widths=(width,) * len(blocks),
        entry="ln_pre",
        entry_side="input",
        norm=None if isinstance(model.ln_post, nn.Identity) else "ln_post",
        heads=(),
        output_width=pooled,
        in_channels=model.conv1.in_channels,
        patch_size=tuple(model.patch_size),
        prefix_tokens=1,
        hidden_when_headed=("proj",),
        library="open_clip",
        **_preprocessing(model),
    )


def _preprocessing(model: Any) -> dict[str, Any]:
    cfg = getattr(model, "preprocess_cfg", None) or {}
    size = cfg.get("size", model.image_size)
    return {
        "image_size": (size, size) if isinstance(size, int) else tuple(size),
        "image_mean": tuple(cfg["mean"]) if "mean" in cfg else None,
        "image_std": tuple(cfg["std"]) if "std" in cfg else None,
    }


def _read_timm_tower(model: Any) -> BackboneAnatomy:
    trunk = read_anatomy(model.trunk)
    # Without a projection of its own the tower projects by the trunk's classification layer.
    trunk_heads = tuple(dataclasses.replace(head, path=f"trunk.{head.path}") for head in trunk.heads)
    heads = (HeadAnatomy("head"),) if len(model.head) else trunk_heads
    return dataclasses.replace(
        trunk,
        family="open_clip_vit",
        blocks=tuple((f"trunk.{path}", block) for path, block in trunk.blocks),
        entry=None if trunk.entry is None else f"trunk.{trunk.entry}",
        norm=None if trunk.norm is None else f"trunk.{trunk.norm}",
        heads=tuple(dataclasses.replace(head, classifier=False) for head in heads),
        blocked_methods=(),
        library="open_clip",
        model_name=None,
        **_preprocessing(model),
    )


def _attend(
    block: Any, h: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Tensor | None = None
) -> Tensor:
    refuse_masks(k_x=k_x, v_x=v_x, attn_mask=attn_mask)
    out: Tensor = block.attention(h)
    return out


_BLOCK = BlockAnatomy(
    attention="attn",
    mlp="mlp",
    pre_attention="ln_1",
    post_attention="ls_1",
    pre_mlp="ln_2",
    post_mlp="ls_2",
    project_qkv=project_packed_weights,
    project_out=project_out,
    attend=_attend,
    softmax_scale=inverse_root_scale,
    heads=num_heads,
    fused_spatial=True,
)

BACKBONE = Backbone(
    name="open_clip_vit",
    library="open_clip",
    describes="open_clip VisionTransformer and timm ViT towers, alone or inside CLIP and CustomTextCLIP",
    read=read,
)
