"""Fields and functions that the descriptors of timm's transformers share."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from functools import partial
from typing import Any

from torch import nn

from aim_adapters.anatomy import Attend, BlockAnatomy, Parts, ReadPositions
from aim_adapters.backbones._answers import OVERRIDES
from aim_adapters.backbones._assign import read_once
from aim_adapters.backbones._attention import num_heads, project_out, project_packed, project_qkv, softmax_scale
from aim_adapters.backbones._draft import check_draft, require_filled
from aim_adapters.backbones._fetch import Kind, checked_arguments, fetch, repository
from aim_adapters.backbones._limits import require_modest
from aim_adapters.backbones._parts import placed_parts
from aim_adapters.backbones.descriptor import BaseRequest, prefixed_hub_id
from aim_adapters.errors import ConfigError


def final_norm(model: Any) -> str | None:
    """Return the name of the norm before the classification layer: the one after the pooling if there is any."""
    return next((name for name in ("fc_norm", "norm") if not isinstance(getattr(model, name), nn.Identity)), None)


def common_fields(model: Any, embedding: str = "patch_embed") -> dict[str, Any]:
    """Return the fields of a BackboneAnatomy that are read in the same way from every timm transformer.

    Args:
        model: The model.
        embedding: Attribute of the module that cuts images into patches and embeds them.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    patch_embed = getattr(model, embedding)
    # The first convolution of several: in hybrids a whole network precedes the patches.
    stem = next((module for module in patch_embed.modules() if isinstance(module, nn.Conv2d)), None)
    size = getattr(patch_embed, "img_size", None)
    holder = patch_embed if hasattr(patch_embed, "in_chans") else model
    channels = holder.in_chans if stem is None else stem.in_channels
    arguments: dict[str, Any] = {
        "num_classes": model.num_classes,
        "in_chans": channels,
        "global_pool": model.global_pool,
    }
    if size:
        arguments["img_size"] = list(size)
    if getattr(model, "dynamic_img_size", False):
        arguments["dynamic_img_size"] = True
    return {
        "root": "",
        "input_name": "x",
        "in_channels": channels,
        "patch_size": tuple(patch_embed.patch_size),
        "patch_conv": f"{embedding}.proj" if isinstance(getattr(patch_embed, "proj", None), nn.Conv2d) else None,
        "blocked_methods": (
            *("reset_classifier", "prune_intermediate_layers", "set_input_size"),
            *("init_weights", "fix_init_weight"),
        ),
        "image_methods": ("forward_features", "forward_intermediates", "get_intermediate_layers"),
        "overrides": OVERRIDES,
        "class_count": "num_classes",
        "library": "timm",
        **_name(cfg),
        "build_arguments": arguments,
        "image_size": tuple(size) if size else None,
        "image_mean": cfg.get("mean"),
        "image_std": cfg.get("std"),
        "caution": _caution(model, cfg),
    }


def _caution(model: Any, cfg: dict[str, Any]) -> str:
    """Return a note on weights that were trained with another activation than this model has, or ``""``."""
    from timm.layers import QuickGELU

    tag = cfg.get("tag") or ""
    quick = tag == "openai" or any("natively QuickGELU" in note for note in cfg.get("notes") or ())
    if not quick or any(isinstance(module, QuickGELU) for module in model.modules()):
        return ""
    right = f"{str(cfg.get('architecture')).replace('_clip_', '_clip_quickgelu_')}.{tag}"
    return (
        f"the weights {tag!r} were trained with QuickGELU, and this model runs them with another activation; build "
        f"{right!r} for the model that they belong to"
    )


def _name(cfg: dict[str, Any]) -> dict[str, str | None]:
    """Return a model's name and revision: its entry in timm's registry, or its repository on the Hub."""
    architecture, tag, source = cfg.get("architecture"), cfg.get("tag"), cfg.get("source")
    name, revision = f"{architecture}.{tag}" if architecture and tag else architecture, None
    if source == "local-dir":
        name = None
    elif source == "hf-hub":
        repo_id, _, pinned = cfg["hf_hub_id"].partition("@")
        name, revision = name if repo_id == f"timm/{name}" else f"hf-hub:{repo_id}", pinned or None
    return {"model_name": name, "model_revision": revision}


def hub_id(name: str) -> str | None:
    """Return the repository of a name in timm: the one that its registry gives for a name with a tag."""
    repo_id = prefixed_hub_id(name)
    if repo_id is not None or "/" in name:
        return repo_id or name
    if "." not in name:
        return None  # without a tag, no weights are named
    # A card is also made where timm is not installed, or is another version, without the tag.
    with suppress(ImportError, RuntimeError):
        from timm.models import get_pretrained_cfg

        # Models that differ only in their activation share one repository.
        if (cfg := get_pretrained_cfg(name, allow_unregistered=True)) is not None and cfg.hf_hub_id:
            return str(cfg.hf_hub_id)
    return f"timm/{name}"


def build(request: BaseRequest) -> nn.Module:
    """Build a timm model from a name in its registry, a repository on the Hub, or a directory.

    Args:
        request: With a name such as ``vit_base_patch16_clip_quickgelu_224.openai`` or ``hf-hub:user/name``. Weights are
            read from safetensors only.

    Raises:
        ConfigError: The directory has no safetensors file, the registry has no weights on the Hub for that name, or an
            argument is unknown.
        CheckpointError: The files cannot be fetched from the Hub.
        As timm: it does not know the name, or cannot read the files.
    """
    import timm

    arguments = checked_arguments(request, _ARGUMENTS)
    repo_id, directory, name = repository(request.name), request.directory, request.name
    if directory is None and repo_id is not None:
        directory = fetch(request, repo_id, "config.json").parent
    weights_repo = (repo_id or _weights_of(name)) if request.pretrained and request.directory is None else ""
    source: dict[str, Any] = {}
    if directory is not None:
        name, source = f"local-dir:{directory}", {"source": ""}
        require_modest(directory / "config.json")

    def create(pretrained: bool = False) -> nn.Module:
        model: Any = timm.create_model(name, pretrained=pretrained, pretrained_cfg_overlay=source, **arguments)
        if size := arguments.get("img_size"):  # a model of frames of any size keeps it nowhere else
            height, width = (size, size) if isinstance(size, int) else size
            channels, *_ = model.pretrained_cfg.get("input_size") or (3,)
            model.pretrained_cfg["input_size"] = (channels, height, width)
        built: nn.Module = model
        return built

    values = check_draft(create, request)
    if not request.pretrained:
        return create()
    if request.directory is None:
        weights = fetch(request, weights_repo, _WEIGHTS)
    else:
        weights = request.directory / _WEIGHTS
        if not weights.is_file():
            raise ConfigError(f"{request.directory} holds no {_WEIGHTS}; save it with safe_serialization=True")
    require_filled(values, [weights])
    # The file is given explicitly: if timm searched for one, it would also read pickles.
    source |= {"file": str(weights), "custom_load": False}
    return read_once(partial(create, pretrained=True), [weights])


def classifier(request: BaseRequest, image_size: tuple[int, int] | None) -> BaseRequest:
    """Return a request completed for a model that classifies frames.

    Args:
        request: The request.
        image_size: Height and width of frames, or None.
    """
    return request if image_size is None else request.with_arguments(img_size=list(image_size))


def names(*modules: str) -> list[str]:
    """Return the models of some files of timm that have published weights.

    Args:
        *modules: Such as ``"vision_transformer"``.
    """
    import timm

    return [name for module in modules for name in timm.list_models(module=module, pretrained=True)]


def _weights_of(name: str) -> str:
    """Return the repository with the weights of a model in timm's registry."""
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id:
        raise ConfigError(f"timm has no pre-trained weights on the Hub for {name!r}")
    return str(cfg.hf_hub_id)


_WEIGHTS = "model.safetensors"
_ARGUMENTS: dict[str, Kind] = {
    "num_classes": "classes",
    "in_chans": "channels",
    "img_size": "size",
    "global_pool": "word",
    "dynamic_img_size": "flag",
    "use_naflex": "flag",
}


def block_anatomy(
    attend: Attend, *, scales: tuple[str, str], parts: Parts = placed_parts, positions: ReadPositions | None = None
) -> BlockAnatomy:
    """Return the anatomy of a pre-norm block.

    Args:
        attend: The block's own attention.
        scales: Attributes of the LayerScales after attention and MLP.
        parts: Reads the block's branches.
        positions: Reads what the block's spatial attention knows of places.
    """
    return BlockAnatomy(
        attention="attn",
        mlp="mlp",
        pre_attention="norm1",
        post_attention=(scales[0], "drop_path1"),
        pre_mlp="norm2",
        post_mlp=(scales[1], "drop_path2"),
        project_qkv=project_qkv,
        project_out=project_out,
        project_packed=project_packed,
        attend=attend,
        softmax_scale=softmax_scale,
        heads=num_heads,
        parts=parts,
        positions=positions,
    )


def post_norm(block: BlockAnatomy) -> BlockAnatomy:
    """Return the anatomy of the same block with its norms after attention and MLP, and without LayerScale.

    Args:
        block: The anatomy of the pre-norm block.
    """
    return dataclasses.replace(
        block,
        pre_attention=None,
        post_attention=("norm1", "drop_path1"),
        pre_mlp=None,
        post_mlp=("norm2", "drop_path2"),
    )
