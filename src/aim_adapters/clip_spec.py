"""What a clip is to a wrapped model: how many frames, taken how, of which size, normalized how, and the classes' names.

What a caller or a checkpoint says is kept on the model (`RootState.clip`) and saved with its adapters; what nobody said
is read from the image model and its library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from aim_adapters.arguments import read_items, require_integer, require_numbers, require_texts, shown
from aim_adapters.backbones import base_labels
from aim_adapters.core import FoundAdapter, RootState, WrappedModel, only_root
from aim_adapters.errors import ConfigError

_SIZE = "image_size must be a height and a width in pixels"


@dataclass(frozen=True)
class ClipSpec:
    """What a model reads: `clip_spec` returns it, and ``dataclasses.replace`` changes it.

    Args:
        frames: Frames of a clip, T.
        stride: Distance between the frames of a clip, in frames of the video ("dense" sampling); None: one frame of
            each of T equal segments of the whole video ("uniform").
        image_size: Height and width of a frame, in pixels.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, likewise.
        labels: Names of the classes in the order of the outputs, or None if they are not known.

    Raises:
        ConfigError: A field has a value that it cannot have.
    """

    frames: int
    stride: int | None
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Normalize and validate every field."""
        put = object.__setattr__  # the dataclass is frozen; this is its constructor
        put(self, "frames", require_integer("frames", self.frames, low=1))
        if self.stride is not None:
            put(self, "stride", require_integer("stride", self.stride, low=1))
        size = [require_integer("image_size", item, low=1, high=2**14) for item in read_items(self.image_size, _SIZE)]
        if len(size) != 2:
            raise ConfigError(f"{_SIZE}, got {shown(self.image_size)}")
        put(self, "image_size", tuple(size))
        mean = read_items(self.mean, "mean must be a number for each channel")
        facts = checked_facts(mean=mean, std=self.std, labels=self.labels, channels=len(mean))
        for name in ("mean", "std"):
            put(self, name, tuple(facts[name]))
        put(self, "labels", None if self.labels is None else tuple(facts["labels"]))


class ClipFacts(NamedTuple):
    """What is known of a model's clips; the fields are those of `ClipSpec`, None where nobody has said them.

    A module that is not wrapped tells `clip_spec` what it reads by an attribute ``clip_facts``.
    """

    frames: int
    stride: int | None
    image_size: tuple[int, int] | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    labels: Sequence[str] | None


def clip_spec(model: nn.Module) -> ClipSpec:
    """Return what a clip is to a wrapped model, or to a baseline.

    Frames, stride, mean, std and labels are those of the checkpoint that was loaded, or that wrapping or training has
    set; else those of the image model and of its library. The image size is the one that the model was built for.

    Args:
        model: A wrapped model, or one of `aim_adapters.training.build_baseline`.

    Raises:
        TypeError: ``model`` is not a module.
        StateError: The model is not wrapped, or holds several wrapped models.
        ConfigError: The library does not say for what image size or normalization the image model was made.
    """
    facts = getattr(model, "clip_facts", None)
    if not isinstance(facts, ClipFacts):
        facts = _facts_of(only_root(model))
    mean, std, size = facts.mean, facts.std, facts.image_size
    unknown = [name for name, value in {"mean": mean, "std": std, "image_size": size}.items() if not value]
    if unknown or mean is None or std is None or size is None:
        raise ConfigError(
            f"this {type(model).__name__} does not say its {', '.join(unknown)}; build an "
            "aim.ClipSpec(frames, stride, image_size, mean, std) and pass it as spec="
        )
    labels = None if facts.labels is None else tuple(facts.labels)
    return ClipSpec(facts.frames, facts.stride, size, tuple(mean), tuple(std), labels)


def _facts_of(wrapped: WrappedModel) -> ClipFacts:
    state, clip = wrapped.state, wrapped.state.clip
    anatomy = state.anatomy
    return ClipFacts(
        frames=state.config.num_frames,
        stride=clip.get("stride"),
        image_size=anatomy.image_size,
        mean=clip.get("mean") or anatomy.image_mean,
        std=clip.get("std") or anatomy.image_std,
        labels=known_labels(wrapped, wrapped.find(None), anatomy.model_name),
    )


def record_clip(
    model: nn.Module,
    *,
    stride: int | None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Note on a wrapped model what its clips are, to be saved with its adapters.

    What is None stays as it was, but for the stride.

    Args:
        model: A wrapped model.
        stride: Distance between the frames of a clip; None: one frame of each of T equal segments.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        labels: Names of the classes.

    Raises:
        ConfigError: One does not fit the model.
    """
    state = only_root(model).state
    facts = checked_facts(stride=stride, mean=mean, std=std, labels=labels, channels=state.anatomy.in_channels)
    require_label_count(facts.get("labels"), state)
    state.clip = {**state.clip, **facts, "stride": facts.get("stride")}


def checked_facts(
    *,
    stride: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: Sequence[str] | None = None,
    channels: int,
) -> dict[str, Any]:
    """Return those facts about clips that are given, as JSON holds them.

    Args:
        stride: Distance between the frames of a clip.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        labels: Names of the classes.
        channels: Number of channels.

    Raises:
        ConfigError: One is of another kind.
    """
    facts: dict[str, Any] = {}
    if stride is not None:
        facts["stride"] = require_integer("stride", stride, low=1)
    if mean is not None:
        facts["mean"] = per_channel("mean", mean, channels)
    if std is not None:
        facts["std"] = per_channel("std", std, channels)
    if labels is not None:
        facts["labels"] = require_texts("labels", labels, expected="a sequence of names")
    return facts


def per_channel(what: str, values: Sequence[float], channels: int) -> list[float]:
    """Return one number for each channel.

    Args:
        what: ``"mean"`` or ``"std"``.
        values: The numbers.
        channels: How many there must be.

    Raises:
        ConfigError: There are more or fewer, or they are no finite numbers, or a ``std`` is not positive.
    """
    positive = what == "std"
    expected = f"{channels} finite numbers{' > 0' * positive}, one for each channel"
    return require_numbers(
        what, values, count=channels, expected=expected, low=0.0 if positive else -math.inf, open_low=positive
    )


def require_label_count(labels: Sequence[str] | None, state: RootState) -> None:
    """Refuse names of classes that do not fit an adapter.

    Args:
        labels: The names, or None.
        state: The adapter's container at the root.

    Raises:
        ConfigError: There are not as many as the adapter has classes.
    """
    classifier = state.classifier("head")
    if labels is not None and (classifier is None or len(labels) != classifier.out_features):
        outputs = "no classification layer" if classifier is None else f"{classifier.out_features} classes"
        raise ConfigError(f"got {len(labels)} labels for a model with {outputs}")


def named_classes(labels: Sequence[str] | None, num_classes: int | None) -> tuple[list[str] | None, int | None]:
    """Return the names of classes, and how many classes they imply.

    Args:
        labels: The names, all different, or None.
        num_classes: How many classes the caller asked for, or None.

    Raises:
        ConfigError: The names are no list of different texts, or not ``num_classes``.
    """
    if labels is None:
        return None, num_classes
    names = require_texts("labels", labels, expected="a sequence of names, one for each class")
    if not names or len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError(f"labels must name each class once, got {f'twice: {shown(twice)}' if names else 'none'}")
    if num_classes is not None and num_classes != len(names):
        raise ConfigError(f"got {len(names)} labels and num_classes={shown(num_classes)}; leave num_classes out")
    return names, len(names)


def known_labels(wrapped: WrappedModel, adapter: FoundAdapter, base: str | None) -> Sequence[str] | None:
    """Return the names of an adapter's classes, or None if nobody has said them.

    Args:
        wrapped: Result of `only_root` for the model.
        adapter: The adapter.
        base: Name of the base model in its library.
    """
    state = adapter.state
    said, own = state.clip.get("labels"), _own_labels(wrapped, adapter, base)
    # Of new classes the model itself knows only names that the caller has given since.
    return (own or said) if state.config.num_classes else (said or own)


def clip_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that the config of a checkpoint states about clips, without those that it leaves open.

    Args:
        config: Content of ``adapter_config.json``.
    """
    clip = config.get("clip") or {}
    return {name: clip[name] for name in ("stride", "mean", "std", "labels") if clip.get(name) is not None}


def _own_labels(wrapped: WrappedModel, adapter: FoundAdapter, base: str | None) -> Sequence[str] | None:
    """Return the names of an adapter's classes that the image model knows, or None."""
    state = adapter.state
    classifier = state.classifier("head")
    if classifier is None or state is not wrapped.state:  # the model speaks of the adapter that runs
        return None
    copied = state.config.num_classes is None
    labels = base_labels(state.anatomy.library, wrapped.root, base if copied else None)
    return labels if labels is not None and len(labels) == classifier.out_features else None
