"""Put the oracle's weights into the models of other libraries."""

from __future__ import annotations

import torch
import transformers as hf
from open_clip.transformer import QuickGELU
from open_clip.transformer import VisionTransformer as OpenClipViT
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from tests.oracle.vit import Size, Weights


def fill(model: nn.Module, state: Weights, absent: tuple[str, ...] = ()) -> nn.Module:
    """Load ``state`` strictly, but for what the oracle has no counterpart of."""
    own = model.double().state_dict()
    kept = {key: tensor for key, tensor in own.items() if absent and key.startswith(absent)}
    model.load_state_dict({**kept, **{key: tensor.reshape(own[key].shape) for key, tensor in state.items()}})
    return model.eval()


def both(w: Weights, ours: str, theirs: str) -> Weights:
    return {f"{theirs}.{leaf}": w[f"{ours}.{leaf}"] for leaf in ("weight", "bias")}


def packed(w: Weights, i: int, leaf: str) -> Tensor:
    return torch.cat([w[f"{i}.{name}.{leaf}"] for name in "qkv"])


def timm(w: Weights, s: Size) -> nn.Module:
    model = TimmViT(
        img_size=s.image, patch_size=s.patch, embed_dim=s.dim, depth=s.depth, num_heads=s.heads,
        mlp_ratio=s.mlp / s.dim, num_classes=s.classes, pre_norm=s.pre_norm, init_values=0.1 if s.layer_scale else None,
        act_layer="quick_gelu" if s.quick_gelu else "gelu", norm_layer=lambda d, **kw: nn.LayerNorm(d, eps=s.eps, **kw),
    )  # fmt: skip
    if not s.patch_bias:
        model.patch_embed.proj.bias = None
    state = {"cls_token": w["class"], "pos_embed": w["position"], **both(w, "norm", "norm"), **both(w, "head", "head")}
    state |= {k.replace("patch.", "patch_embed.proj."): v for k, v in w.items() if k.startswith("patch.")}
    if s.pre_norm:
        state |= both(w, "pre_norm", "norm_pre")
    for i in range(s.depth):
        at = f"blocks.{i}"
        state |= {f"{at}.attn.qkv.{leaf}": packed(w, i, leaf) for leaf in ("weight", "bias")}
        for ours, theirs in (("norm1", "norm1"), ("norm2", "norm2"), ("out", "attn.proj"), ("fc1", "mlp.fc1"),
                             ("fc2", "mlp.fc2")):  # fmt: skip
            state |= both(w, f"{i}.{ours}", f"{at}.{theirs}")
        if s.layer_scale:
            state |= {f"{at}.ls{j}.gamma": w[f"{i}.ls{j}"] for j in (1, 2)}
    return fill(model, state)


def open_clip(w: Weights, s: Size) -> nn.Module:
    model = OpenClipViT(
        s.image, s.patch, s.dim, s.depth, s.heads, s.mlp / s.dim, output_dim=s.classes, no_ln_pre=not s.pre_norm,
        act_layer=QuickGELU if s.quick_gelu else nn.GELU, ls_init_value=0.1 if s.layer_scale else None,
        norm_layer=lambda d: nn.LayerNorm(d, eps=s.eps),
    )  # fmt: skip
    state = {
        "conv1.weight": w["patch.weight"], "class_embedding": w["class"], "positional_embedding": w["position"],
        "proj": w["head.weight"].T, **both(w, "norm", "ln_post"),
    }  # fmt: skip
    if s.pre_norm:
        state |= both(w, "pre_norm", "ln_pre")
    for i in range(s.depth):
        at = f"transformer.resblocks.{i}"
        state |= {f"{at}.attn.in_proj_{leaf}": packed(w, i, leaf) for leaf in ("weight", "bias")}
        for ours, theirs in (("norm1", "ln_1"), ("norm2", "ln_2"), ("out", "attn.out_proj"), ("fc1", "mlp.c_fc"),
                             ("fc2", "mlp.c_proj")):  # fmt: skip
            state |= both(w, f"{i}.{ours}", f"{at}.{theirs}")
        if s.layer_scale:
            state |= {f"{at}.ls_{j}.gamma": w[f"{i}.ls{j}"] for j in (1, 2)}
    return fill(model, state)


def torchvision(w: Weights, s: Size) -> nn.Module:
    model = TorchvisionViT(
        s.image, s.patch, s.depth, s.heads, s.dim, s.mlp, num_classes=s.classes,
        norm_layer=lambda d: nn.LayerNorm(d, eps=s.eps),
    )  # fmt: skip
    state = {
        "class_token": w["class"], "encoder.pos_embedding": w["position"], **both(w, "patch", "conv_proj"),
        **both(w, "norm", "encoder.ln"), **both(w, "head", "heads.head"),
    }  # fmt: skip
    for i in range(s.depth):
        at = f"encoder.layers.encoder_layer_{i}"
        state |= {f"{at}.self_attention.in_proj_{leaf}": packed(w, i, leaf) for leaf in ("weight", "bias")}
        for ours, theirs in (("norm1", "ln_1"), ("norm2", "ln_2"), ("out", "self_attention.out_proj"),
                             ("fc1", "mlp.0"), ("fc2", "mlp.3")):  # fmt: skip
            state |= both(w, f"{i}.{ours}", f"{at}.{theirs}")
    return fill(model, state)


def _hf_config(s: Size) -> dict[str, object]:
    return {
        "image_size": s.image, "patch_size": s.patch, "hidden_size": s.dim, "num_hidden_layers": s.depth,
        "num_attention_heads": s.heads, "intermediate_size": s.mlp, "layer_norm_eps": s.eps, "num_labels": s.classes,
        "hidden_act": "quick_gelu" if s.quick_gelu else "gelu",
    }  # fmt: skip


def _hf_blocks(w: Weights, s: Size, at: str, names: dict[str, str]) -> Weights:
    state: Weights = {}
    for i in range(s.depth):
        for ours, theirs in names.items():
            state |= both(w, f"{i}.{ours}", f"{at}.{i}.{theirs}")
    return state


def hf_clip(w: Weights, s: Size) -> nn.Module:
    state = {
        "embeddings.class_embedding": w["class"], "embeddings.patch_embedding.weight": w["patch.weight"],
        "embeddings.position_embedding.weight": w["position"], **both(w, "pre_norm", "pre_layrnorm"),
        **both(w, "norm", "post_layernorm"),
        **_hf_blocks(w, s, "encoder.layers", {
            "norm1": "layer_norm1", "norm2": "layer_norm2", "q": "self_attn.q_proj", "k": "self_attn.k_proj",
            "v": "self_attn.v_proj", "out": "self_attn.out_proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2",
        }),
    }  # fmt: skip
    return fill(hf.CLIPVisionModel(hf.CLIPVisionConfig(**_hf_config(s))), state)


def hf_vit(w: Weights, s: Size) -> nn.Module:
    state = {
        "vit.embeddings.cls_token": w["class"], "vit.embeddings.position_embeddings": w["position"],
        **both(w, "patch", "vit.embeddings.patch_embeddings.projection"), **both(w, "norm", "vit.layernorm"),
        **both(w, "head", "classifier"),
        **_hf_blocks(w, s, "vit.layers", {
            "norm1": "layernorm_before", "norm2": "layernorm_after", "q": "attention.q_proj", "k": "attention.k_proj",
            "v": "attention.v_proj", "out": "attention.o_proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2",
        }),
    }  # fmt: skip
    return fill(hf.ViTForImageClassification(hf.ViTConfig(**_hf_config(s))), state)


def hf_dinov2(w: Weights, s: Size) -> nn.Module:
    config = hf.Dinov2Config(**_hf_config(s), mlp_ratio=s.mlp // s.dim, use_mask_token=False)
    state = {
        "embeddings.cls_token": w["class"], "embeddings.position_embeddings": w["position"],
        **both(w, "patch", "embeddings.patch_embeddings.projection"), **both(w, "norm", "layernorm"),
        **_hf_blocks(w, s, "encoder.layer", {
            "norm1": "norm1", "norm2": "norm2", "q": "attention.q_proj", "k": "attention.k_proj",
            "v": "attention.v_proj", "out": "attention.o_proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2",
        }),
    }  # fmt: skip
    for i in range(s.depth):
        state |= {f"encoder.layer.{i}.layer_scale{j}.lambda1": w[f"{i}.ls{j}"] for j in (1, 2)}
    return fill(hf.Dinov2Model(config), state, absent=("embeddings.mask_token",))
