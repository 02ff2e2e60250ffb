"""Baselines to compare adapters with, built by name, and trained and evaluated by the same calls."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from aim_adapters.arguments import require_choice, require_flags, require_integer, require_path
from aim_adapters.backbones import read_anatomy
from aim_adapters.checkpoint import load_adapters, save_adapters
from aim_adapters.clip_spec import ClipFacts, named_classes
from aim_adapters.config import OF_TIME, AIMConfig
from aim_adapters.core import (
    is_wrapped,
    place_of,
    require_bare,
    require_place_for_head,
    require_wrappable,
    sample_weights,
    warn_untrained,
)
from aim_adapters.errors import CheckpointError, ConfigError
from aim_adapters.recipes import Recipe, get_recipe
from aim_adapters.table import Table
from aim_adapters.training.baseline_models import (
    Baseline,
    FrameAverage,
    VideoTransformer,
    require_trainable,
    train_all,
)
from aim_adapters.training.lora import add_lora, lora_layers
from aim_adapters.training.probe_models import Probe
from aim_adapters.training.snapshots import (
    read_metadata,
    read_weights,
    save_weights,
    trained_parameters,
)
from aim_adapters.training.space_time import add_frame_attention, require_plain
from aim_adapters.wrapping import wrap_image_model

# The ladder of Table 1: the components of each rung.
RUNGS = {
    "frozen": (),
    "spatial": ("spatial",),
    "temporal": ("spatial", "temporal"),
    "joint": ("spatial", "temporal", "joint"),
}
TIMESFORMER = "facebook/timesformer-base-finetuned-k400"


class BaselineRow(NamedTuple):
    """One baseline in the table of `list_baselines`.

    Attributes:
        name: Name by which `build_baseline` builds it.
        model: What it is built around.
        trains: What trains.
        package: Package that it needs besides.
    """

    name: str
    model: str
    trains: str
    package: str | None


_ROWS = (
    BaselineRow("frozen", "an image model", "final norm, classifier (Table 1: frozen space-only)", None),
    BaselineRow("spatial", "an image model", "the same and spatial adapters", None),
    BaselineRow("temporal", "an image model", "the same and temporal adapters", None),
    BaselineRow("joint", "an image model", "the same and joint adapters: AIM", None),
    BaselineRow("full", "an image model", "all (full fine-tuning, space-only)", None),
    BaselineRow("full-space-time", "a plain ViT", "all, and a copy of each attention, over frames (TimeSformer)", None),
    BaselineRow("probe", "an image model", "classifier of features averaged over frames", None),
    BaselineRow("attentive-probe", "an image model", "cross-attention over the tokens of all frames, classifier", None),
    BaselineRow("lora", "an image model", "LoRA in the attention, classifier (space-only)", "peft"),
    BaselineRow("lora-temporal", "a plain ViT", "the same and temporal adapters", "peft"),
    BaselineRow("timesformer", "TimesformerForVideoClassification", "all", "transformers"),
    BaselineRow("video-swin", "SwinTransformer3d", "all", "torchvision"),
)
_NAMES = tuple(row.name for row in _ROWS)


def list_baselines() -> Table[BaselineRow]:
    """Return the baselines that `build_baseline` builds."""
    return Table(_ROWS)


def build_baseline(
    name: str,
    *,
    model: nn.Module | None = None,
    labels: Sequence[str] | None = None,
    num_classes: int | None = None,
    num_frames: int | None = None,
    recipe: str | Recipe = "small-data",
    rank: int = 16,
    pretrained: bool = True,
) -> nn.Module:
    """Return a video classifier to compare adapters with. It maps ``[B, T, C, H, W]`` to ``[B, K]``.

    `fit`, `evaluate` and `predict` take it like a wrapped model, and `clip_spec` says what it reads. The rungs of
    Table 1 are wrapped models, and return what those do. The others are `Baseline`s: what trains in them is saved by
    `save_baseline`, and by `fit` in the folder of the run.

    Args:
        name: A name in `list_baselines`.
        model: The image model, which is changed in place. For ``"timesformer"`` and ``"video-swin"`` a model of
            transformers and torchvision; by default ViT-B and Swin-B, with weights that were trained on Kinetics-400.
        labels: Names of the classes in the order of the outputs; they imply ``num_classes``.
        num_classes: Number of classes K.
        num_frames: Frames of a clip; by default the recipe's, or 8.
        recipe: The recipe, or the name of one, that it will be trained by: it says scale, rates of dropout and
            stochastic depth, the adapter before temporal attention and the tubelet size.
        rank: Rank of LoRA.
        pretrained: False: random weights where no ``model`` is given.

    Raises:
        TypeError: ``model`` is of another kind.
        ConfigError: A setting is invalid, missing, or does not fit the model.
        StateError: The model is wrapped already, compiled, sharded or distributed.
        UnsupportedModelError: The image model cannot be adapted or trained in this way. It is unchanged.
        ImportError: A package is not installed.
    """
    require_choice("name", name, _NAMES)
    plan = get_recipe(recipe)
    listed, classes = named_classes(labels, num_classes)
    names = None if listed is None else tuple(listed)
    rank = require_integer("rank", rank, low=1)
    require_flags(pretrained=pretrained)
    settings = {**plan.wrap_settings(), "components": RUNGS.get(name, ())}
    if num_frames is not None or plan.frames is None:
        settings["num_frames"] = 8 if num_frames is None else num_frames
    if "temporal" not in settings["components"]:
        settings = {setting: value for setting, value in settings.items() if setting not in OF_TIME}
    config = AIMConfig(**settings, num_classes=classes)  # which checks them
    if not classes:
        raise ConfigError("a baseline needs to know its classes; pass labels=[...] or num_classes=K")
    if name == "timesformer":
        return _timesformer(model, classes, labels=names, frames=config.num_frames, pretrained=pretrained)
    if name == "video-swin":
        return _video_swin(model, classes, labels=names, frames=config.num_frames, pretrained=pretrained)
    if model is None:
        raise ConfigError(f"the baseline {name!r} is built around an image model; pass model=timm.create_model(...)")
    if name in RUNGS:
        return wrap_image_model(model, **settings, num_classes=None if names else classes, labels=names)
    return _frame_average(name, model, classes, labels=names, config=config, rank=rank)


def _frame_average(
    name: str, model: nn.Module, classes: int, *, labels: Sequence[str] | None, config: AIMConfig, rank: int
) -> Baseline:
    require_wrappable(model)
    anatomy = read_anatomy(model)
    require_place_for_head(anatomy, config, owner=type(model).__name__)
    if anatomy.patch_inputs:
        raise ConfigError(f"this {type(model).__name__} reads patches cut beforehand, not frames; pass another model")
    warn_untrained(sample_weights(model), anatomy)
    blank = torch.zeros(1, anatomy.in_channels, *(anatomy.image_size or (224, 224)), **place_of(model))
    over_frames = name in ("full-space-time", "lora-temporal")
    if over_frames:
        require_plain(model, anatomy, shared="lora" in name)
    layers = lora_layers(model, anatomy, blank, rank=rank) if "lora" in name else []
    if name.startswith("full"):
        require_trainable(model)
    # From here on the model is changed.
    facts = ClipFacts(config.num_frames, None, anatomy.image_size, anatomy.image_mean, anatomy.image_std, labels)
    shape: dict[str, Any] = {"facts": facts, "tubelet_size": config.tubelet_size, "dropout": config.head_dropout}
    if "probe" in name:
        return Probe(name, model, anatomy, classes, **shape, attentive=name == "attentive-probe")
    baseline = FrameAverage(name, model, anatomy, classes, **shape)
    if layers:
        add_lora(model, layers, rank=rank)
    else:
        train_all(baseline, lambda frame: baseline.head(baseline.features(frame)), blank)
    if over_frames:
        adapters = config if layers else None
        baseline.temporal = add_frame_attention(model, anatomy, baseline.read_frames, adapters=adapters)
    return baseline


def _video_transformer(
    name: str, model: nn.Module, classifier: str, classes: int, *, facts: ClipFacts, channels_first: bool
) -> Baseline:
    require_bare(model, "build_baseline", "pass the model itself")
    require_trainable(model)
    baseline = VideoTransformer(name, model, classifier, classes, facts=facts, channels_first=channels_first)
    clip = torch.zeros(1, facts.frames, 3, *(facts.image_size or (224, 224)), **place_of(model))
    train_all(baseline, baseline, clip)
    return baseline


def _timesformer(model: Any, classes: int, *, labels: Sequence[str] | None, frames: int, pretrained: bool) -> Baseline:
    try:
        from transformers import TimesformerConfig, TimesformerForVideoClassification
    except ImportError as error:
        raise ImportError(
            "the baseline 'timesformer' needs transformers: pip install aim-adapters[transformers]"
        ) from error
    if model is None:
        if pretrained:
            model = TimesformerForVideoClassification.from_pretrained(TIMESFORMER)
        else:
            model = TimesformerForVideoClassification(TimesformerConfig(num_frames=frames))
    if not isinstance(model, TimesformerForVideoClassification):
        raise TypeError(f"model must be a TimesformerForVideoClassification, got {type(model).__name__}")
    size: Any = model.config.image_size
    facts = ClipFacts(frames, None, (size, size), (0.45,) * 3, (0.225,) * 3, labels)
    return _video_transformer("timesformer", model, "classifier", classes, facts=facts, channels_first=False)


def _video_swin(model: Any, classes: int, *, labels: Sequence[str] | None, frames: int, pretrained: bool) -> Baseline:
    try:
        from torchvision.models.video import Swin3D_B_Weights, SwinTransformer3d, swin3d_b
    except ImportError as error:
        raise ImportError("the baseline 'video-swin' needs torchvision: pip install torchvision") from error
    if model is None:
        model = swin3d_b(weights=Swin3D_B_Weights.KINETICS400_V1 if pretrained else None)
    if not isinstance(model, SwinTransformer3d):
        raise TypeError(f"model must be a torchvision SwinTransformer3d, got {type(model).__name__}")
    facts = ClipFacts(frames, None, (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), labels)
    return _video_transformer("video-swin", model, "head", classes, facts=facts, channels_first=True)


def save_baseline(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Save what trains in a baseline, as `fit` does: adapters of a rung, else one file, ``trained.safetensors``.

    Args:
        model: Result of `build_baseline`.
        directory: Folder; created if it does not exist.

    Raises:
        TypeError: ``model`` is no baseline, or ``directory`` no path.
        CheckpointError: The file cannot be written.
    """
    folder = require_path("directory", directory)
    if not is_wrapped(model):
        save_weights(folder, _require_baseline(model), trained_parameters(model), first=True, sharded=False)
    else:
        save_adapters(model, folder)


def load_baseline(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Read what `save_baseline` or `fit` has saved into a baseline that was built in the same way.

    Args:
        model: Result of `build_baseline`.
        directory: Folder that holds it.

    Raises:
        TypeError: ``model`` is no baseline, or ``directory`` no path.
        CheckpointError: There is no such file, or it is of another baseline, or of other classes. The model is
            unchanged.
    """
    folder = require_path("directory", directory)
    if is_wrapped(model):
        load_adapters(model, folder)
        return
    baseline = _require_baseline(model)
    facts = baseline.clip_facts
    saved = json.loads(read_metadata(folder).get("baseline", "{}"))
    saved = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    for field, own in {"name": baseline.baseline, "frames": facts.frames, "labels": facts.labels}.items():
        if own is not None and saved.get(field, own) != own:
            raise CheckpointError(
                f"{folder} holds a baseline with {field}={saved[field]!r:.200}, this one has {own!r:.200}; build it "
                "with the same arguments"
            )
    read_weights(folder, baseline)
    baseline.clip_facts = facts._replace(**{name: saved[name] for name in facts._fields if name in saved})


def _require_baseline(model: object) -> Baseline:
    if not isinstance(model, Baseline):
        raise TypeError(f"model must be what build_baseline returned, got {type(model).__name__}")
    return model
