"""Describe timm's ``VisionTransformer`` (and its distilled sub-class) with plain ``Block``.

Class-token, average, attention and register-token pooling, LayerScale, query/key norm, pre-norm and dynamic image
size need nothing of their own: the final norm and the head are the modules that the model itself uses.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy, BlockAnatomy, HeadAnatomy, require_type
from aim_adapters.backbones import Backbone
from aim_adapters.errors import UnsupportedModelError


def read(model: nn.Module) -> BackboneAnatomy | None:
    """Read a timm ``VisionTransformer``; None for anything else."""
    from timm.models.vision_transformer import VisionTransformer

    return read_tower(model) if isinstance(model, VisionTransformer) else None


def read_tower(model: Any) -> BackboneAnatomy:
    """Read a ``VisionTransformer`` that is known to be one.

    Raises:
        UnsupportedModelError: A block or its attention is of another type.
    """
    from timm.layers import Attention
    from timm.models.vision_transformer import Block

    for index, block in enumerate(model.blocks):
        if type(block) is not Block:
            raise UnsupportedModelError(
                f"blocks.{index} is a {type(block).__module__}.{type(block).__qualname__}, expected exactly "
                "timm.models.vision_transformer.Block; describe this block with register_backbone to adapt it"
            )
        require_type(block, "attn", (Attention,), where=f"blocks.{index}")
    cfg = getattr(model, "pretrained_cfg", None) or {}
    name, tag = cfg.get("architecture"), cfg.get("tag")
    norms = tuple(name for name in ("norm", "fc_norm") if not isinstance(getattr(model, name), nn.Identity))
    return BackboneAnatomy(
        family="timm_vit",
        root="",
        input_name="x",
        blocks=tuple((f"blocks.{i}", _BLOCK) for i in range(len(model.blocks))),
        block_widths=(model.embed_dim,) * len(model.blocks),
        entry="norm_pre",
        entry_side="input",
        norms=norms,
        heads=tuple(HeadAnatomy(name) for name in ("head", "head_dist") if hasattr(model, name)),
        output_width=model.embed_dim,
        in_channels=model.patch_embed.proj.in_channels,
        patch_size=tuple(model.patch_embed.patch_size),
        prefix_tokens=model.num_prefix_tokens,
        blocked_methods=("reset_classifier",),
        library="timm",
        model_name=f"{name}.{tag}" if name and tag else name,
        image_size=tuple(model.patch_embed.img_size) if model.patch_embed.img_size else None,
        image_mean=cfg.get("mean"),
        image_std=cfg.get("std"),
    )


def _project_qkv(block: Any, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    attn = block.attn
    q, k, v = attn.qkv(h).unflatten(-1, (3, attn.num_heads, attn.head_dim)).unbind(-3)  # 3 x [B*T, N, H, d]
    # Under autocast a norm returns float32; the family's own SDPA call casts it back.
    return attn.q_norm(q).to(v.dtype), attn.k_norm(k).to(v.dtype), v


def _project_out(block: Any, o: Tensor, h: Tensor) -> Tensor:
    attn = block.attn
    o = attn.norm(o.flatten(-2))  # [B*T, N, H*d]
    if getattr(attn, "gate", None) is not None:
        o = o * attn.gate(h).sigmoid()
    out: Tensor = attn.proj(o)
    return out


def _attend(block: Any, h: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    if attn_mask is not None or is_causal:
        raise UnsupportedModelError(
            "an attention mask was passed to an adapted block; masks have no meaning along time: call the model "
            "without attn_mask and is_causal"
        )
    out: Tensor = block.attn(h)
    return out


def _softmax_scale(block: Any) -> float:
    return float(block.attn.scale)


_BLOCK = BlockAnatomy(
    attention="attn",
    mlp="mlp",
    pre_attention="norm1",
    post_attention="ls1",
    pre_mlp="norm2",
    post_mlp="ls2",
    project_qkv=_project_qkv,
    project_out=_project_out,
    attend=_attend,
    softmax_scale=_softmax_scale,
)

BACKBONE = Backbone(
    name="timm_vit",
    library="timm",
    describes="timm VisionTransformer with Block (ViT, DeiT, CLIP, SigLIP, DINOv2)",
    read=read,
)
