"""Checkpoints of the AIM reference implementation, loaded into a model or written in this package's format."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy
from aim_adapters.arguments import require_choice, require_flags, require_integer, require_path
from aim_adapters.backbones import read_anatomy
from aim_adapters.checkpoint import (
    LoadReport,
    compare,
    load_adapter_state_dict,
    require_reasonable,
    save_adapters,
    saved_facts,
)
from aim_adapters.config import AIMConfig
from aim_adapters.convert.base import fill, find_roles, require_same_shapes, require_same_values, split
from aim_adapters.convert.formula import Formula, require_same_function
from aim_adapters.convert.layout import Reference, infer_config, read_reference
from aim_adapters.convert.reading import read_tensors, require_finite
from aim_adapters.core import build_adapter, only_root, require_memory, require_wrappable, update_samples
from aim_adapters.errors import CheckpointError, ConfigError, warn
from aim_adapters.wrapping import DEFAULT_NAME, make_record, unwrap_image_model, wrap_with_config

Source = str | os.PathLike[str] | Mapping[str, Any]


def load_official_checkpoint(
    model: nn.Module,
    source: Source,
    *,
    backbone: Literal["verify", "fill"] = "verify",
    strict: bool = True,
    num_classes: int | None = None,
    scale: float | None = None,
    drop_path: float = 0.2,
    head_dropout: float = 0.5,
    head_width: int = 64,
) -> LoadReport:
    """Wrap an image model with the settings of a checkpoint of the AIM reference, and load its adapters and classifier.

    Supported are the files that the reference publishes for CLIP ViT-B/16 and ViT-L/14 (Kinetics-400 and -700,
    Something-Something v2, Diving-48; 8, 16 and 32 frames), and those that its code writes for ImageNet ViT and Swin:
    mmaction checkpoints ``{"state_dict": {"backbone.…": …, "cls_head.fc_cls.…": …}}``, or that state dict. Frames,
    bottleneck, components, input adapters, classes and tubelets are inferred from the shapes.

    The model may come from any library. Its weights must be those that the reference adapted, and it must compute the
    same function: activation, epsilons, pooling and the order of layers are compared with the reference's on one image.
    The final norm in the file was trained, so the model's own is neither compared nor filled. On any error the model is
    unchanged and not wrapped.

    Args:
        model: The image model, not wrapped. For CLIP it needs QuickGELU: timm's
            ``vit_base_patch16_clip_quickgelu_224.openai``, open_clip's ``ViT-B-16-quickgelu`` (its ``visual``).
        source: Path of the ``.pth`` file, which is read without running any code in it, or a state dict.
        backbone: ``"verify"``: compare the model's pre-trained weights with those in the file; a file without any is
            loaded with a warning. ``"fill"``: copy the weights in the file into the model, except the final norm and
            the classification layer.
        strict: Refuse unknown keys, and adapters that are missing or of another shape; otherwise report them.
        num_classes: ``None``: the classes of the file. ``0``: no layer; for models that cannot have a classification
            layer. ``head.weight`` and ``head.bias`` are then reported as unexpected.
        scale: Factor on the joint adapter, which cannot be inferred. ``None``: 0.5 as in the paper, but 1 for files
            with input adapters, as in the reference's configs for Something-Something v2.
        drop_path: Stochastic depth rate of the last block, for further training.
        head_dropout: Dropout rate before the classifier, for further training.
        head_width: Width of an attention head in a ViT, which cannot be inferred.

    Returns:
        The keys that did not load; none, unless ``strict=False`` or ``num_classes=0``.

    Raises:
        CheckpointError: The file is damaged, not of the reference, or not for this model.
        ConfigError: An argument is invalid.
        StateError: The model is wrapped already, compiled, sharded or distributed, or has no weights (meta device).
        UnsupportedModelError: The model cannot be adapted.
        TypeError: ``model`` is not a module, or ``source`` neither a path nor a mapping.
    """
    require_choice("backbone", backbone, ("verify", "fill"))
    require_flags(strict=strict)
    head_width = require_integer("head_width", head_width, low=1)
    # Refuse wrong settings before the file is read.
    AIMConfig(
        1,
        scale=0.5 if scale is None else scale,
        num_classes=num_classes,
        drop_path=drop_path,
        head_dropout=head_dropout,
    )
    require_wrappable(model)
    require_memory(model.parameters())
    reference = read_reference(read_tensors(source))
    if strict and reference.unknown:
        raise CheckpointError(
            f"{len(reference.unknown)} keys have no meaning in a {reference.layout.name} of the reference: "
            f"{', '.join(repr(key[:100]) for key in reference.unknown[:5])}; pass strict=False to leave them out"
        )
    anatomy = read_anatomy(model)
    _require_place(model, anatomy, num_classes)
    config = infer_config(
        reference,
        anatomy.block_widths,
        scale=scale,
        num_classes=num_classes,
        drop_path=drop_path,
        head_dropout=head_dropout,
    )
    root = model.get_submodule(anatomy.root)
    head_keys = [key for key in reference.adapters if num_classes == 0 and key.startswith("head.")]
    adapters = {key: tensor for key, tensor in reference.adapters.items() if key not in head_keys}
    _require_adapters_fit(model, anatomy, config, adapters, strict=strict)
    values = _checked_backbone(root, anatomy, reference, backbone, head_width)
    require_finite(adapters)
    wrap_with_config(model, config, filled_later=backbone == "fill")
    done = False
    try:
        report = load_adapter_state_dict(model, adapters, strict)
        if backbone == "fill":
            fill(root, values)
            update_samples(only_root(model).state.record.samples, root, values)
        done = True
    finally:
        if not done:
            unwrap_image_model(model)
    return report._replace(unexpected=(*report.unexpected, *head_keys, *reference.unknown))


def convert_official_checkpoint(
    model: nn.Module,
    source: Source,
    directory: str | os.PathLike[str],
    *,
    base_model_name_or_path: str | None = None,
    base_model_revision: str | None = None,
    frame_stride: int | None = None,
    labels: Sequence[str] | None = None,
    scale: float | None = None,
) -> Path:
    """Convert a checkpoint of the AIM reference to the format of `load_adapters`, `load_video_model` and the Hub.

    Args:
        model: The pre-trained image model that the checkpoint adapts. Its weights are compared with the checkpoint's,
            as in `load_official_checkpoint`. It is unchanged afterward, and not wrapped.
        source: Path of the ``.pth`` file, or a state dict.
        directory: The directory to write to; created if it does not exist.
        base_model_name_or_path: Name of the base model; by default its name in its library.
        base_model_revision: Revision of the base model's weights.
        frame_stride: Distance between sampled frames, in frames of the video (16, 8 and 4 on Kinetics, for 8, 16 and 32
            frames).
        labels: Names of the classes in the order of the outputs.
        scale: Factor on the joint adapter, as for `load_official_checkpoint`.

    Returns:
        The directory.

    Raises:
        CheckpointError: As `load_official_checkpoint`; or ``directory`` is a file.
        ConfigError: An argument is invalid.
        StateError: The model is wrapped already, compiled, sharded or distributed, or has no weights (meta device).
        UnsupportedModelError: The model cannot be adapted.
        TypeError: ``model`` is not a module, or ``source`` neither a path nor a mapping.
    """
    path = require_path("directory", directory)
    facts = saved_facts(
        base_model_name_or_path=base_model_name_or_path,
        base_model_revision=base_model_revision,
        frame_stride=frame_stride,
        labels=labels,
    )
    load_official_checkpoint(model, source, scale=scale)
    try:
        return save_adapters(
            model,
            path,
            **facts._asdict(),
        )
    finally:
        unwrap_image_model(model)


def _require_place(model: nn.Module, anatomy: BackboneAnatomy, num_classes: int | None) -> None:
    """Refuse models that cannot have the checkpoint's final norm or classification layer."""
    name = type(model).__name__
    if anatomy.whole_model:
        raise CheckpointError(f"this {name} compares images with text; pass its image tower, model.{anatomy.root}")
    if anatomy.norm is None:
        raise CheckpointError(
            f"{name} does not read a final norm's [class] token, as the reference does; pass the bare image tower of "
            "the same weights (transformers: CLIPVisionModel) with num_classes=0"
        )
    if num_classes is None and anatomy.pooled_outputs and not anatomy.heads:
        raise CheckpointError(
            f"{name} has no place for a classification layer; pass num_classes=0, which makes its pooler_output the "
            "features that the checkpoint's 'cls_head.fc_cls' reads, or use the same weights in timm or open_clip"
        )


def _require_adapters_fit(
    model: nn.Module, anatomy: BackboneAnatomy, config: AIMConfig, adapters: Mapping[str, Tensor], *, strict: bool
) -> None:
    """Refuse adapters of other shapes than the settings give them, before memory is taken or a value is read."""
    root, record = model.get_submodule(anatomy.root), make_record(model, anatomy)
    try:
        adapter = build_adapter(root, config, record=record, name=DEFAULT_NAME, owner=model, on_meta=True)
    except ConfigError as error:
        raise CheckpointError(f"the checkpoint's settings do not fit this model: {error}") from error
    targets = adapter.declared()
    require_reasonable(root, targets)
    compare(targets, {key: tuple(tensor.shape) for key, tensor in adapters.items()}, strict=strict)


def _checked_backbone(
    root: nn.Module, anatomy: BackboneAnatomy, reference: Reference, backbone: str, head_width: int
) -> dict[str, Tensor]:
    """Check that the model fits the checkpoint's image model, and return its tensors by the root's parameter names."""
    roles = find_roles(root, anatomy)
    base = reference.base
    if not base:
        if backbone == "fill":
            raise CheckpointError("backbone='fill', but the checkpoint holds no backbone; pass 'verify'")
        warn(
            "the checkpoint holds adapters only, so the weights of the model could not be compared with those they "
            "were trained on"
        )
        base = {role: torch.cat([root.get_parameter(name).detach() for name in names]) for role, names in roles.items()}
    require_same_shapes(root, roles, base, reference.layout.models)
    values = split(root, roles, base)
    trained = {key: tensor for key, tensor in reference.adapters.items() if key.startswith("norm.")}
    for key, tensor in trained.items():
        if list(tensor.shape) != [anatomy.output_width]:
            raise CheckpointError(f"{key} must be [{anatomy.output_width}] for this model, got {list(tensor.shape)}")
    require_finite(base | trained)
    formula = Formula(
        reference.layout, {key: t.to("cpu", torch.float32) for key, t in (base | trained).items()}, head_width
    )
    require_same_function(root, anatomy, roles, values, formula)
    if reference.base and backbone == "verify":
        require_same_values(root, values)
    return values
