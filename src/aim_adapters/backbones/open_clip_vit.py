"""The descriptor of open_clip's image towers: its ``VisionTransformer``, timm towers, and whole CLIP models."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy, BlockAnatomy, HeadAnatomy, require_type
from aim_adapters.backbones._answers import no_weight_decay
from aim_adapters.backbones._assign import read_once
from aim_adapters.backbones._attention import (
    inverse_root_scale,
    num_heads,
    packed_weights,
    project_out,
    project_packed_weights,
    refuse_masks,
    require_plain_multi_head,
)
from aim_adapters.backbones._draft import check_draft, require_filled
from aim_adapters.backbones._fetch import Kind, checked_arguments, fetch, repository
from aim_adapters.backbones._parts import plain_parts
from aim_adapters.backbones.descriptor import Backbone, BaseRequest
from aim_adapters.backbones.registry import read_anatomy
from aim_adapters.backbones.timm_vit import reads_class_token
from aim_adapters.errors import ConfigError, UnsupportedModelError
from aim_adapters.storage import read_torch_file


def read(model: nn.Module) -> BackboneAnatomy | None:
    """Return the anatomy of an open_clip tower or a whole ``CLIP`` / ``CustomTextCLIP``; None for other models.

    Args:
        model: Any module.

    Raises:
        UnsupportedModelError: The tower is not a transformer, or has blocks that cannot be adapted.
    """
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
        arguments = {**tower.build_arguments, "part": "model"}
        return dataclasses.replace(tower, root="visual", whole_model=True, build_arguments=arguments)
    if isinstance(model, TimmModel):
        return _read_timm_tower(model)
    return _read_vit(model) if isinstance(model, VisionTransformer) else None


def _read_vit(model: Any) -> BackboneAnatomy:
    from open_clip.transformer import VisionTransformer

    layers = model.transformer.resblocks
    blocks = [_read_block(layers, i, where="transformer.resblocks") for i in range(len(layers))]
    width = model.conv1.out_channels
    # With an attentional pooler, the classification layer reads the pooler's output, which has another width.
    pooled = width if model.attn_pool is None else model.output_dim
    return BackboneAnatomy(
        family="open_clip_vit",
        root="",
        input_name="x",
        blocks=tuple((f"transformer.resblocks.{i}", block) for i, block in enumerate(blocks)),
        block_widths=(width,) * len(blocks),
        entry="ln_pre",
        entry_side="input",
        norm=None if isinstance(model.ln_post, nn.Identity) else "ln_post",
        heads=(),
        output_width=pooled,
        in_channels=model.conv1.in_channels,
        patch_conv="conv1",
        patch_size=tuple(model.patch_size),
        prefix_tokens=1,
        hidden_when_headed=("proj",),
        class_token_only=_reads_class_token if type(model) is VisionTransformer else None,
        image_methods=("forward_intermediates",),
        **_common_fields(model),
    )


def _read_block(layers: Any, index: int, *, where: str) -> BlockAnatomy:
    """Return the anatomy of one block, which depends on its type and the type of its attention."""
    from open_clip.transformer import Attention, CustomResidualAttentionBlock, ResidualAttentionBlock

    require_type(layers, str(index), (ResidualAttentionBlock, CustomResidualAttentionBlock), where=where)
    block, where = layers[index], f"{where}.{index}"
    require_type(block, "attn", (nn.MultiheadAttention, Attention), where=where)
    if hasattr(block, "ln_1_kv"):
        raise UnsupportedModelError(f"{where} attends to other tokens than its own; expected self-attention only")
    if isinstance(block.attn, nn.MultiheadAttention):
        require_plain_multi_head(block.attn, where=f"{where}.attn")
        return _BLOCK
    if block.attn.logit_scale is not None:
        raise UnsupportedModelError(f"{where}.attn uses scaled cosine attention, whose own forward fails in open_clip")
    return _CUSTOM_BLOCK if isinstance(block, CustomResidualAttentionBlock) else _OWN_ATTENTION_BLOCK


def _common_fields(model: Any) -> dict[str, Any]:
    from open_clip.transformer import QuickGELU

    cfg = getattr(model, "preprocess_cfg", None) or {}
    size = cfg.get("size", model.image_size)
    arguments: dict[str, Any] = {"part": "visual", "image_size": list(model.image_size)}
    if any(isinstance(module, QuickGELU) for module in model.modules()):
        arguments["quick_gelu"] = True
    return {
        "blocked_methods": ("lock", "lock_image_tower", "init_parameters", "prune_intermediate_layers"),
        "overrides": (("no_weight_decay", no_weight_decay),),
        "class_count": "",
        "library": "open_clip",
        "model_name": None,  # open_clip's models do not record it
        "build_arguments": arguments,
        "image_size": (size, size) if isinstance(size, int) else tuple(size),
        "image_mean": tuple(cfg["mean"]) if "mean" in cfg else None,
        "image_std": tuple(cfg["std"]) if "std" in cfg else None,
    }


def _read_timm_tower(model: Any) -> BackboneAnatomy:
    trunk = read_anatomy(model.trunk)
    # A tower without a projection uses the trunk's classification layer for it.
    trunk_heads = tuple(dataclasses.replace(head, path=f"trunk.{head.path}") for head in trunk.heads)
    heads = (HeadAnatomy("head"),) if len(model.head) else trunk_heads
    return dataclasses.replace(
        trunk,
        family="open_clip_vit",
        blocks=tuple((f"trunk.{path}", block) for path, block in trunk.blocks),
        entry=None if trunk.entry is None else f"trunk.{trunk.entry}",
        norm=None if trunk.norm is None else f"trunk.{trunk.norm}",
        patch_conv=None if trunk.patch_conv is None else f"trunk.{trunk.patch_conv}",
        heads=tuple(dataclasses.replace(head, classifier=False) for head in heads),
        class_token_only=None if trunk.class_token_only is None else _trunk_reads_class_token,
        **_common_fields(model),
    )


def _reads_class_token(model: Any) -> bool:
    return model.attn_pool is None and model.pool_type == "tok" and not model.output_tokens


def _trunk_reads_class_token(model: Any) -> bool:
    return reads_class_token(model.trunk)


def build(request: BaseRequest) -> nn.Module:
    """Build an open_clip model, or its image tower, from a name and tag, a repository on the Hub, or a directory.

    Args:
        request: With a name such as ``ViT-B-16:openai`` or ``hf-hub:user/name``. Weights are read from safetensors;
            only those of open_clip's own list may be a pickle, which is checked before open_clip reads it.

    Raises:
        ConfigError: There is no such model, it has no such weights, the directory has no safetensors file, or an
            argument is unknown.
        CheckpointError: The files cannot be fetched from the Hub.
        As open_clip: it cannot read the files.
    """
    import open_clip

    arguments = checked_arguments(request, _ARGUMENTS)
    repo_id = repository(request.name)
    options: dict[str, Any] = {}
    name, _, tag = request.name.partition(":")
    if request.directory is not None or repo_id is not None:
        directory = request.directory or fetch(request, str(repo_id), "open_clip_config.json").parent
        name = f"local-dir:{directory}"
    else:
        cfg = open_clip.get_pretrained_cfg(name, tag)
        options["force_preprocess_cfg"] = cfg
        if request.pretrained and not cfg.get("hf_hub"):
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
            raise ConfigError(f"open_clip has no weights {request.name!r}; expected name:tag, tags it has: {tags}")
    config = open_clip.get_model_config(name)
    if config is None:
        raise ConfigError(f"open_clip has no model {name!r}")
    size = arguments.get("image_size")
    if size is not None and size != _pair(config["vision_cfg"].get("image_size", 224)):
        options["force_image_size"] = size

    def create(pretrained: bool = False) -> nn.Module:
        model: Any = open_clip.create_model(
            name,
            **options,
            force_quick_gelu=arguments.get("quick_gelu", False),
            load_weights=pretrained,
            require_pretrained=pretrained,
            pretrained_text=False,
            weights_only=True,
        )
        built: nn.Module = model.visual if arguments.get("part") == "visual" else model
        return built

    values = check_draft(create, request)
    if not request.pretrained:
        return create()
    if request.directory is not None:
        weights = list(request.directory.glob("*.safetensors"))
        if not weights:
            raise ConfigError(f"{request.directory} holds no {_WEIGHTS}; save the weights as safetensors")
    elif repo_id is not None:
        weights = [fetch(request, repo_id, _WEIGHTS)]
    else:
        weights = [_fetch_listed(request, *posixpath.split(cfg["hf_hub"]))]
        options["pretrained"] = str(weights[0])
    require_filled(values, weights)
    return read_once(partial(create, pretrained=True), weights)


def _classifier(request: BaseRequest, image_size: tuple[int, int] | None) -> BaseRequest:
    """Return a request completed for an image tower, run as its weights were trained: with QuickGELU, or without."""
    import open_clip

    arguments: dict[str, Any] = {"part": "visual"}
    if image_size is not None:
        arguments["image_size"] = list(image_size)
    if tuple(request.name.split("/")) in open_clip.list_pretrained():  # people write name/tag, too
        request = dataclasses.replace(request, name=request.name.replace("/", ":"))
    name, _, tag = request.name.partition(":")
    if tag and open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"):
        arguments["quick_gelu"] = True
    return request.with_arguments(**arguments)


def _names() -> list[str]:
    import open_clip

    def adaptable(name: str) -> bool:
        tower: dict[str, Any] = (open_clip.get_model_config(name) or {"vision_cfg": {"layers": []}})["vision_cfg"]
        known = ("vit", "eva", "swin", "beit", "deit")
        return str(tower.get("timm_model_name", "vit")).startswith(known) and not isinstance(tower.get("layers"), list)

    return [f"{name}:{tag}" for name, tag in open_clip.list_pretrained() if adaptable(name)]


def _call(arguments: Mapping[str, Any]) -> str:
    """Return the code to call with a video: of a whole model, the method that runs its image tower."""
    return "model.encode_image" if arguments.get("part") == "model" else "model"


def _fetch_listed(request: BaseRequest, repo_id: str, filename: str) -> Path:
    """Fetch the weights of an entry of open_clip's list; a few are pickles."""
    safe = posixpath.splitext(filename)[0] + ".safetensors" if filename else _WEIGHTS
    path = fetch(request, repo_id, safe, filename or "open_clip_pytorch_model.bin")
    if path.suffix != ".safetensors":
        read_torch_file(path)
    return path


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


_WEIGHTS = "open_clip_model.safetensors"
_ARGUMENTS: dict[str, Kind] = {"part": "word", "image_size": "size", "quick_gelu": "flag"}


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
    project_packed=packed_weights,
    attend=_attend,
    softmax_scale=inverse_root_scale,
    heads=num_heads,
    fused_spatial=True,
    parts=plain_parts,
)


def _project_own(attn: Any, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = project_packed_weights(attn, h)
    return attn.ln_q(q).to(v.dtype), attn.ln_k(k).to(v.dtype), v


def _project_own_out(attn: Any, o: Tensor, h: Tensor) -> Tensor:
    if attn.head_scale is not None:
        o = o * attn.head_scale.squeeze(-1)  # [B*T, N, H, d] by [H, 1]
    out: Tensor = attn.out_proj(attn.ln_inner(o.flatten(-2)))  # [B*T, N, D]
    return out


def _attend_own(block: Any, h: Tensor, *args: Any, attn_mask: Tensor | None = None) -> Tensor:
    refuse_masks(attn_mask=attn_mask, **{f"argument_{i}": value for i, value in enumerate(args)})
    out: Tensor = block.attn(h)
    return out


# open_clip's own attention module always takes the fused kernel.
_OWN_ATTENTION_BLOCK = dataclasses.replace(
    _BLOCK,
    project_qkv=_project_own,
    project_out=_project_own_out,
    project_packed=None,
    attend=_attend_own,
    fused_spatial=False,
    parts=None,
)
_CUSTOM_BLOCK = dataclasses.replace(_OWN_ATTENTION_BLOCK, post_attention=("ln_attn", "ls_1"))

BACKBONE = Backbone(
    name="open_clip_vit",
    library="open_clip",
    describes="open_clip VisionTransformer and timm ViT towers, alone or inside CLIP and CustomTextCLIP",
    read=read,
    build=build,
    call=_call,
    names=_names,
    classifier=_classifier,
)
