"""State what timm's transformers have in common, and transformers and torchvision do not."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from aim_adapters.anatomy import Attend, BlockAnatomy
from aim_adapters.backbones._attention import num_heads, project_out, project_qkv, softmax_scale


def final_norm(model: Any) -> str | None:
    """Return the norm in front of the classification layer: behind the pooling if there is one, else before it."""
    return next((name for name in ("fc_norm", "norm") if not isinstance(getattr(model, name), nn.Identity)), None)


def facts(model: Any) -> dict[str, Any]:
    """Return the fields of a BackboneAnatomy that every timm transformer states in the same way."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    name, tag = cfg.get("architecture"), cfg.get("tag")
    patch_embed = model.patch_embed
    # The first convolution: hybrids have a whole network in front of the patches.
    stem = next((module for module in patch_embed.modules() if isinstance(module, nn.Conv2d)), None)
    size = getattr(patch_embed, "img_size", None)
    return {
        "root": "",
        "input_name": "x",
        "in_channels": model.in_chans if stem is None else stem.in_channels,
        "patch_size": tuple(patch_embed.patch_size),
        "blocked_methods": ("reset_classifier",),
        "library": "timm",
        "model_name": f"{name}.{tag}" if name and tag else name,
        "image_size": tuple(size) if size else None,
        "image_mean": cfg.get("mean"),
        "image_std": cfg.get("std"),
    }


def block_anatomy(attend: Attend, *, scales: tuple[str, str]) -> BlockAnatomy:
    """Describe a pre-norm block.

    Args:
        attend: The block's own attention.
        scales: Attributes of the LayerScales behind attention and MLP.
    """
    return BlockAnatomy(
        attention="attn",
        mlp="mlp",
        pre_attention="norm1",
        post_attention=scales[0],
        pre_mlp="norm2",
        post_mlp=scales[1],
        project_qkv=project_qkv,
        project_out=project_out,
        attend=attend,
        softmax_scale=softmax_scale,
        heads=num_heads,
    )


def post_norm(block: BlockAnatomy) -> BlockAnatomy:
    """Describe the same block with its norms behind attention and MLP, and without LayerScale."""
    return dataclasses.replace(block, pre_attention=None, post_attention="norm1", pre_mlp=None, post_mlp="norm2")
