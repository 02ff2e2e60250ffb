"""Fields and functions that the descriptors of vision models of transformers share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy, BlockAnatomy, HeadAnatomy, require_type
from aim_adapters.backbones._assign import warn_random
from aim_adapters.backbones._attention import num_heads, project_out, project_qkv, softmax_scale
from aim_adapters.backbones._draft import check_draft, require_filled
from aim_adapters.backbones._fetch import Kind, checked_arguments, fetch, find_weights
from aim_adapters.backbones._image_processor import PROCESSORS, image_statistics
from aim_adapters.backbones._limits import limited, most_parameters
from aim_adapters.backbones._parts import plain_parts
from aim_adapters.backbones.descriptor import BaseRequest, prefixed_hub_id
from aim_adapters.errors import CheckpointError, ConfigError, UnsupportedModelError
from aim_adapters.storage import read_json


def block_anatomy(
    attend: Callable[..., Tensor],
    *,
    attention: str,
    norms: tuple[str, str],
    after: tuple[tuple[str, ...], tuple[str, ...]] = ((), ()),
) -> BlockAnatomy:
    """Return the anatomy of a pre-norm block with separate projections.

    Args:
        attend: The family's own attention.
        attention: Attribute of the attention.
        norms: Attributes of the norms before attention and MLP.
        after: Attributes of the parts after attention and MLP: LayerScale, dropout, drop path.
    """
    return BlockAnatomy(
        attention=attention,
        mlp="mlp",
        pre_attention=norms[0],
        post_attention=after[0],
        pre_mlp=norms[1],
        post_mlp=after[1],
        project_qkv=project_qkv,
        project_out=project_out,
        attend=attend,
        softmax_scale=softmax_scale,
        heads=num_heads,
        parts=plain_parts,
    )


def attend_attention(block: Any, h: Tensor, *args: Any, **options: Any) -> Tensor:
    """Run a block's own attention, named ``attention``, with the arguments that the model passes down.

    While a model is exported, it passes a mask that masks nothing; the caller's masks are refused at the root.

    Args:
        block: The block.
        h: Tokens ``[B*T, N, D]``.
        *args: The model's arguments.
        **options: The same by name.

    Returns:
        ``[B*T, N, D]``.
    """
    out: Tensor = block.attention(h, *args, **options)[0]
    return out


def attend_self_attn(block: Any, h: Tensor, *args: Any, **options: Any) -> Tensor:
    """Run a block's own attention, named ``self_attn``, with the arguments that the model passes down.

    Args:
        block: The block.
        h: Tokens ``[B*T, N, D]``.
        *args: The model's arguments.
        **options: The same by name.

    Returns:
        ``[B*T, N, D]``.
    """
    out: Tensor = block.self_attn(h, *args, **options)[0]
    return out


def read_tower(
    model: Any,
    *,
    family: str,
    tower: str,
    layers: str,
    block: BlockAnatomy,
    types: tuple[type, type],
    entry: tuple[str, Literal["input", "output"]],
    norm: str | None,
    heads: tuple[HeadAnatomy, ...] = (),
    prefix_tokens: int,
    root: str = "",
    patch_inputs: tuple[str, ...] = (),
) -> BackboneAnatomy:
    """Return the anatomy of a vision model of transformers.

    Args:
        model: The module whose input is images: the tower itself, or a classifier around it.
        family: Name of the descriptor.
        tower: Path of the tower inside ``model``.
        layers: Path of the list of blocks inside the tower.
        block: The blocks' anatomy.
        types: Types of the blocks and of their attention.
        entry: Path of the entry inside the tower, and its side: ``"input"`` or ``"output"``.
        norm: Path of the final norm inside the tower, or None if nothing reads its output.
        heads: The classification layers.
        prefix_tokens: Number of tokens in front of the patches.
        root: Path of ``model`` inside a whole image-text model.
        patch_inputs: `BackboneAnatomy.patch_inputs`.

    Raises:
        UnsupportedModelError: A block or its attention is of another type, or of another version of transformers.
    """
    config = model.config
    config = getattr(config, "vision_config", config)
    at = f"{tower}." if tower else ""
    blocks: nn.ModuleList = model.get_submodule(at + layers)
    for index, layer in enumerate(blocks):
        require_type(blocks, str(index), types[:1], where=at + layers)
        require_type(layer, block.attention, types[1:], where=f"{at}{layers}.{index}")
        if not hasattr(getattr(layer, block.attention), "q_proj"):
            raise UnsupportedModelError(
                f"{at}{layers}.{index}.{block.attention} has no q_proj: this version of transformers builds "
                f"{type(layer).__name__} differently from the newest; update transformers"
            )
    modules = model.get_submodule(tower).named_modules()
    convolutions = [name for name, module in modules if isinstance(module, nn.Conv2d)]
    size, patch = getattr(config, "image_size", None), config.patch_size
    return BackboneAnatomy(
        family=family,
        root=root,
        input_name="pixel_values",
        blocks=tuple((f"{at}{layers}.{i}", block) for i in range(len(blocks))),
        block_widths=(config.hidden_size,) * len(blocks),
        entry=at + entry[0],
        entry_side=entry[1],
        norm=None if norm is None else at + norm,
        heads=heads,
        output_width=_classifier_width(model, heads, config.hidden_size),
        in_channels=config.num_channels,
        patch_size=(patch, patch) if isinstance(patch, int) else tuple(patch),
        patch_conv=at + convolutions[0] if len(convolutions) == 1 else None,
        prefix_tokens=prefix_tokens,
        overrides=(("save_pretrained", save_pretrained),),
        library="transformers",
        **identity(model, classes=bool(heads)),
        image_size=(size, size) if isinstance(size, int) else size and tuple(size),
        patch_inputs=patch_inputs,
        blocked_methods=(
            *("init_weights", "dequantize", "set_input_embeddings"),
            *("resize_position_embeddings", "resize_token_embeddings"),
        ),
        refused_inputs=("attention_mask", "bool_masked_pos"),
        pooled_outputs=("pooler_output", "image_embeds", "logits", "cls_logits", "distillation_logits"),
        relabel=relabel if heads else None,
        whole_model=root != "",
    )


def identity(model: Any, *, classes: bool = False) -> dict[str, Any]:
    """Return the fields of a BackboneAnatomy that tell how to build the model again, and how its images are normalized.

    Args:
        model: The whole model.
        classes: Whether it classifies images.
    """
    arguments: dict[str, Any] = {"architecture": type(model).__name__}
    if classes:
        arguments["num_labels"] = model.config.num_labels
    name = model.name_or_path
    return {
        "model_name": name if name and not Path(name).exists() else None,
        "build_arguments": arguments,
        **image_statistics(model),
    }


def labels(root: Any, name: str | None) -> list[str] | None:
    """Return the names of the classes in a model's config; None if they are those that stand for no names.

    Args:
        root: The root.
        name: The model's name, which is not needed.
    """
    names = _in_order(getattr(getattr(root, "config", None), "id2label", None) or {})
    replaced = getattr(getattr(root, "aim", None), "labels", None)
    if replaced is not None and names == _in_order(replaced[0]):
        return None  # transformers keeps names where there are as many new classes; they are those of others
    return names


def _in_order(id2label: Mapping[Any, Any]) -> list[str] | None:
    named = {str(index): label for index, label in id2label.items()}
    names: list[Any] = [named.get(str(index)) for index in range(len(named))]
    unnamed = names == [f"LABEL_{index}" for index in range(len(names))]
    return None if unnamed or not all(isinstance(name, str) for name in names) else names


def hub_id(name: str) -> str:
    """Return the repository of a name in transformers, where every name is one."""
    return prefixed_hub_id(name) or name


def call(arguments: Mapping[str, Any]) -> str | None:
    """Return the code to call with a video; None for towers that read patches cut beforehand.

    Args:
        arguments: The model's ``build_arguments``.
    """
    architecture = arguments.get("architecture")
    if architecture in ("Siglip2Model", "Siglip2VisionModel", "Siglip2ForImageClassification"):
        return None
    return "model.get_image_features" if architecture in ("CLIPModel", "SiglipModel") else "model"


def build(request: BaseRequest) -> nn.Module:
    """Build a model of transformers from a repository on the Hub or a directory, without running code found there.

    Args:
        request: With a name ``user/name``, and the name of the model's class as the argument ``architecture``. Weights
            are read from safetensors only.

    Raises:
        ConfigError: The class is not one of those that can be adapted, an argument is unknown, the name is also a
            local path, or the directory has no safetensors file.
        CheckpointError: The weights cannot be fetched from the Hub.
        As transformers: it cannot fetch or read the files.
    """
    import transformers

    arguments = checked_arguments(request, _ARGUMENTS)
    architecture = arguments.pop("architecture", "")
    cls: Any = getattr(transformers, architecture, None)
    known = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    if not known or _FAMILIES.isdisjoint(cls.__module__.split(".")):
        raise ConfigError(f"{architecture!r} is not an image transformer of transformers that can be adapted")
    source = request.directory or request.name
    if request.directory is None and Path(request.name).exists():
        raise ConfigError(f"{request.name!r} is a local path as well; pass it as base_model to build from it")
    fetching: dict[str, Any] = {
        "revision": request.revision or "main",
        "cache_dir": request.cache_dir,
        "token": request.token,
        "local_files_only": request.local_files_only,
        "force_download": request.force_download,
    }

    def create() -> nn.Module:
        config = cls.config_class.from_pretrained(source, **fetching, **arguments)
        config._attn_implementation = None
        untrained: nn.Module = cls(config)
        return untrained

    values = check_draft(create, request)
    if not request.pretrained:
        return create()
    weights = find_weights(request, hub_id(request.name), "model")
    require_filled(values, weights)
    model: nn.Module
    # A model's config may name a kernel on the Hub, whose code would run; None lets transformers choose its own.
    options = {"attn_implementation": None, "ignore_mismatched_sizes": True, "output_loading_info": True}
    with limited(most_parameters(weights)):
        model, report = cls.from_pretrained(source, **fetching, **arguments, **options, use_safetensors=True)
    mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    warn_random(model, [*report["missing_keys"], *mismatched])
    return model


def classifier(request: BaseRequest, image_size: tuple[int, int] | None) -> BaseRequest:
    """Return a request completed for a classifier of images, whose class follows from the repository's config.

    Args:
        request: The request.
        image_size: Height and width of frames, or None.

    Raises:
        ConfigError: transformers has no classifier for it that can be adapted, or another size is asked for.
        CheckpointError: The config cannot be fetched or read.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    if request.directory is None:
        repo_id = hub_id(request.name)
        file = fetch(request, repo_id, "config.json")
        for name in PROCESSORS:  # whose mean and std `image_statistics` reads from the cache
            with suppress(CheckpointError):
                fetch(request, repo_id, name)
    elif not (file := request.directory / "config.json").is_file():
        raise ConfigError(f"{request.directory} holds no config.json of transformers")
    config = read_json(file)
    kind = str(config.get("model_type"))
    found: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.get(kind)
    if found is None or kind not in _FAMILIES - {"siglip2"}:
        raise ConfigError(f"transformers has no classifier of images that can be adapted for the type {kind!r:.80}")
    if image_size is not None and (own := config.get("image_size")) not in (image_size[0], list(image_size)):
        raise ConfigError(
            f"a model of transformers reads frames of the size in its config, {own!r:.80}; got "
            f"{image_size[0]}x{image_size[1]}"
        )
    return request.with_arguments(architecture=found if isinstance(found, str) else found[0])


_ARGUMENTS: dict[str, Kind] = {"architecture": "word", "num_labels": "classes"}
_FAMILIES = {"clip", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "siglip", "siglip2", "vit"}


def relabel(model: Any, labels: Any) -> Any:
    """Change the number of classes in a model's config, which its loss reads, or restore earlier labels.

    Args:
        model: A classifier.
        labels: The number of classes, a list of their names, or what an earlier call returned.

    Returns:
        The labels before the call, to restore them.
    """
    config = model.config
    old = (config.id2label, config.label2id)
    if isinstance(labels, int):
        config.num_labels = labels
        config.id2label, config.label2id = map(copy.copy, (config.id2label, config.label2id))  # which a caller may edit
    elif isinstance(labels, list):
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: index for index, name in enumerate(labels)}
    else:
        config.id2label, config.label2id = labels
    model.num_labels = config.num_labels
    return old


def save_pretrained(model: Any, adapter: Any, original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Write a wrapped model: the image model, which ``from_pretrained`` reads, and our tensors beside it.

    transformers renames keys on their way into a file, of the kind ``layers.0`` to ``encoder.layer.0``, but not when
    its ``Trainer`` reads that file again, which then finds part of them. Here they keep the names of the state dict,
    which ``from_pretrained`` knows as well. It also needs the classes of the image model's own classifier.

    Args:
        model: The model.
        adapter: The adapter that runs.
        original: The model's own method.
        *args: Its arguments.
        **kwargs: The same by name.
    """
    kwargs.setdefault("save_original_format", False)
    labels = None if adapter.labels is None else relabel(model, adapter.labels)
    try:
        original(*args, **kwargs)
    finally:
        if labels is not None:
            relabel(model, labels)


def _classifier_width(model: Any, heads: tuple[HeadAnatomy, ...], hidden_size: int) -> int:
    classifier = model.get_submodule(heads[0].path) if heads else None
    return classifier.in_features if isinstance(classifier, nn.Linear) else hidden_size
