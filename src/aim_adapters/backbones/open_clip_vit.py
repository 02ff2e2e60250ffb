"""Describe open_clip's image towers: its own ``VisionTransformer``, timm towers, and whole CLIP models.

``nn.MultiheadAttention`` takes a native fast path in evaluation without gradients and another path otherwise, so the
kernel would change from call to call, and inside an adapted block from pass to pass. Adapted blocks therefore read
its packed weights and run one fused ``scaled_dot_product_attention`` in all cases.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy, BlockAnatomy, HeadAnatomy, require_type
from aim_adapters.backbones import Backbone
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
        _require_plain_attention(block.attn, where=where)
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
        norms=() if isinstance(model.ln_post, nn.Identity) else ("ln_post",),
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


def _read_timm_tower(model: Any) -> BackboneAnatomy | None:
    from timm.models.vision_transformer import VisionTransformer

    from aim_adapters.backbones.timm_vit import read_tower

    if not isinstance(model.trunk, VisionTransformer):
        return None
    trunk = read_tower(model.trunk)
    # Without a projection of its own the tower projects by the trunk's classification layer.
    heads = (HeadAnatomy("head"),) if len(model.head) else tuple(HeadAnatomy(f"trunk.{h.path}") for h in trunk.heads)
    return dataclasses.replace(
        trunk,
        family="open_clip_vit",
        blocks=tuple((f"trunk.{path}", block) for path, block in trunk.blocks),
        entry=f"trunk.{trunk.entry}",
        norms=tuple(f"trunk.{path}" for path in trunk.norms),
        heads=tuple(dataclasses.replace(head, classifier=False) for head in heads),
        blocked_methods=(),
        library="open_clip",
        model_name=None,
        **_preprocessing(model),
    )


def _require_plain_attention(attn: nn.MultiheadAttention, *, where: str) -> None:
    found = [
        name
        for name, wrong in (
            ("batch_first=False", not attn.batch_first),
            ("separate key/value widths", not attn._qkv_same_embed_dim),
            ("bias_k/bias_v", attn.bias_k is not None or attn.bias_v is not None),
            ("add_zero_attn", attn.add_zero_attn),
        )
        if wrong
    ]
    if found:
        raise UnsupportedModelError(
            f"{where}.attn uses {', '.join(found)}; expected nn.MultiheadAttention with batch_first=True, one packed "
            "projection and no extra keys"
        )


def _project_qkv(block: Any, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    attn = block.attn
    packed = F.linear(h, attn.in_proj_weight, attn.in_proj_bias)  # [B*T, N, 3*D]
    q, k, v = packed.unflatten(-1, (3, attn.num_heads, attn.head_dim)).unbind(-3)  # 3 x [B*T, N, H, d]
    return q, k, v


def _project_out(block: Any, o: Tensor, h: Tensor) -> Tensor:
    out: Tensor = block.attn.out_proj(o.flatten(-2))  # [B*T, N, D]
    return out


def _attend(
    block: Any, h: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Tensor | None = None
) -> Tensor:
    if k_x is not None or v_x is not None or attn_mask is not None:
        raise UnsupportedModelError(
            "an adapted image block was given keys, values or an attention mask; it attends to its own tokens only"
        )
    out: Tensor = block.attention(h)
    return out


def _softmax_scale(block: Any) -> float:
    return float(block.attn.head_dim**-0.5)


_BLOCK = BlockAnatomy(
    attention="attn",
    mlp="mlp",
    pre_attention="ln_1",
    post_attention="ls_1",
    pre_mlp="ln_2",
    post_mlp="ls_2",
    project_qkv=_project_qkv,
    project_out=_project_out,
    attend=_attend,
    softmax_scale=_softmax_scale,
    fused_spatial=True,
)

BACKBONE = Backbone(
    name="open_clip_vit",
    library="open_clip",
    describes="open_clip VisionTransformer and timm ViT towers, alone or inside CLIP and CustomTextCLIP",
    read=read,
)
