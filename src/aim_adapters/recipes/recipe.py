"""The settings of one training, validated once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from aim_adapters.arguments import (
    read_items,
    require_integer,
    require_number,
    require_numbers,
    require_text,
    shown,
)
from aim_adapters.config import OF_TIME, AdapterActivation, AIMConfig, Temporal
from aim_adapters.errors import ConfigError
from aim_adapters.recipes.augmentation import Augmentation

if TYPE_CHECKING:  # which needs PyTorch; recipes are listed without
    from aim_adapters.anatomy import BackboneAnatomy


class ExpectedModel(NamedTuple):
    """The image model that a recipe was made for."""

    depth: int
    width: int  # of the first block
    patch_size: int


@dataclass(frozen=True)
class Recipe:
    """The settings of one training: of the adapted model, its clips, the optimizer and the test.

    The optimizer is AdamW; the learning rate rises linearly and then falls to zero with a cosine.
    ``dataclasses.replace`` changes a setting.

    Args:
        name: Name by which `get_recipe` finds it.
        dataset: What it was made for.
        backbone: The image model that it was made for, in words.
        expected: The same in numbers; None: any, however it was wrapped.
        frames: Frames of a clip, T; None: as many as the model reads.
        stride: Distance between the frames of a clip ("dense" sampling); None: one frame of each of T equal segments
            ("uniform").
        drop_path: As in `wrap_image_model`.
        scale: As in `wrap_image_model`.
        head_dropout: As in `wrap_image_model`.
        temporal_input_adapter: As in `wrap_image_model`.
        tubelet_size: As in `wrap_image_model`.
        temporal: As in `wrap_image_model`.
        conv_kernel: As in `wrap_image_model`.
        conv_layers: As in `wrap_image_model`.
        adapter_activation: As in `wrap_image_model`.
        epochs: Passes over the training set.
        warmup_epochs: How many of them the learning rate rises for.
        warmup_start: Where it rises from, as a share of ``learning_rate``.
        learning_rate: Highest learning rate, for batches of ``batch_size``; `for_batch` scales it.
        head_learning_rate: That of the classification layer; None: the same.
        batch_size: Clips in a step of the optimizer, over all processes.
        weight_decay: Weight decay.
        label_smoothing: Share of the probability that is spread over all classes.
        augmentation: What is done at random to training clips.
        views: Clips in time x crops in space in testing, such as ``"3x1"``.
        paper_top1: Top-1 accuracy in the paper, in percent; None: not published.
        users_top1: Least and greatest top-1 accuracy that users of the reference measured with its released files, by
            which validation videos they could still get; None: unknown.
        reference: Settings that are others in the reference's configuration than in the paper; `as_reference` applies
            them.

    Raises:
        ConfigError: A field has a value that it cannot have.
    """

    name: str
    dataset: str
    backbone: str
    epochs: int
    learning_rate: float
    batch_size: int
    expected: ExpectedModel | None = None
    frames: int | None = None
    stride: int | None = None
    drop_path: float = 0.2
    scale: float = 0.5
    head_dropout: float = 0.5
    temporal_input_adapter: bool = False
    tubelet_size: int = 1
    temporal: Temporal = "attention"
    conv_kernel: int = 3
    conv_layers: str | tuple[int, ...] | None = None
    adapter_activation: AdapterActivation = "gelu"
    warmup_epochs: float = 3.0
    warmup_start: float = 0.0
    head_learning_rate: float | None = None
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    views: str = "1x1"
    paper_top1: float | None = None
    users_top1: tuple[float, float] | None = None
    reference: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Normalize and validate every field."""
        put = object.__setattr__  # the dataclass is frozen; this is its constructor
        for name in ("name", "dataset", "backbone", "views"):
            put(self, name, require_text(name, getattr(self, name)))
        for name in ("epochs", "batch_size", "frames", "stride"):
            if (value := getattr(self, name)) is not None or name in ("epochs", "batch_size"):
                put(self, name, require_integer(name, value, low=1))
        put(self, "expected", _expected(self.expected))
        # The settings of the model, checked where they always are.
        config = AIMConfig(**{"num_frames": self.tubelet_size, **self.wrap_settings()})
        for name in _WRAP:
            put(self, name, getattr(config, name))
        put(self, "learning_rate", require_number("learning_rate", self.learning_rate, low=0.0, open_low=True))
        if self.head_learning_rate is not None:
            rate = require_number("head_learning_rate", self.head_learning_rate, low=0.0, open_low=True)
            put(self, "head_learning_rate", rate)
        for name in ("warmup_epochs", "warmup_start", "weight_decay"):
            put(self, name, require_number(name, getattr(self, name), low=0.0))
        if self.warmup_epochs > self.epochs:
            raise ConfigError(
                f"warmup_epochs must be at most epochs={self.epochs}, got {shown(self.warmup_epochs)}; for_epochs "
                "changes both"
            )
        put(self, "label_smoothing", require_number("label_smoothing", self.label_smoothing, low=0.0, high=1.0))
        if not isinstance(self.augmentation, Augmentation):
            raise ConfigError(f"augmentation must be an Augmentation, got {shown(self.augmentation)}")
        self._check_report()

    def _check_report(self) -> None:
        put = object.__setattr__
        clips, _, crops = self.views.partition("x")
        if not (clips.isdecimal() and crops.isdecimal() and int(clips) and int(crops)):
            raise ConfigError(f"views must be clips x crops, such as '3x1', got {shown(self.views)}")
        if self.paper_top1 is not None:
            put(self, "paper_top1", require_number("paper_top1", self.paper_top1, low=0.0))
        if self.users_top1 is not None:
            expected = "the least and the greatest accuracy"
            put(self, "users_top1", tuple(require_numbers("users_top1", self.users_top1, count=2, expected=expected)))
        known = {field.name for field in dataclasses.fields(self)} - {"name", "reference"}
        if not isinstance(self.reference, Mapping) or not set(self.reference) <= known:
            raise ConfigError(f"reference must map settings of a recipe to values, got {shown(self.reference)}")
        put(self, "reference", dict(self.reference))

    def wrap_settings(self) -> dict[str, Any]:
        """Return the arguments of `wrap_image_model` by name; ``num_frames`` is left out if any number will do."""
        frames = {} if self.frames is None else {"num_frames": self.frames}
        return {**frames, **{name: getattr(self, name) for name in _WRAP}}

    def for_batch(self, batch_size: int) -> Recipe:
        """Return this recipe for another batch size, with learning rates scaled linearly (Goyal et al., 2017).

        Args:
            batch_size: Clips in a step of the optimizer, over all processes.

        Raises:
            ConfigError: It is not an integer >= 1.
        """
        factor = require_integer("batch_size", batch_size, low=1) / self.batch_size
        head = self.head_learning_rate
        return dataclasses.replace(
            self,
            batch_size=batch_size,
            learning_rate=self.learning_rate * factor,
            head_learning_rate=None if head is None else head * factor,
        )

    def for_epochs(self, epochs: int) -> Recipe:
        """Return this recipe for another number of epochs, with a warm-up of the same share of them.

        Args:
            epochs: Passes over the training set.

        Raises:
            ConfigError: It is not an integer >= 1.
        """
        factor = require_integer("epochs", epochs, low=1) / self.epochs
        return dataclasses.replace(self, epochs=epochs, warmup_epochs=self.warmup_epochs * factor)

    def as_reference(self) -> Recipe:
        """Return this recipe as the reference's configuration has it, where that differs from the paper."""
        return dataclasses.replace(self, **self.reference, name=f"{self.name}-reference", reference={})

    def check_fits(self, config: AIMConfig, anatomy: BackboneAnatomy) -> list[str]:
        """Return what of a wrapped model this recipe is not for, in words; nothing if it fits.

        Stochastic depth and dropout are not part of it, as training sets them.

        Args:
            config: How the model was wrapped.
            anatomy: Anatomy of the image model.
        """
        found = []
        fixed: tuple[str, ...] = () if self.frames is None else ("num_frames",)
        if self.expected is not None:
            # Of components that were left out on purpose (the ladder of Table 1), the settings say nothing.
            fixed += ("tubelet_size",)
            fixed += ("adapter_activation",) * bool(config.components)
            fixed += ("scale",) * ("joint" in config.components)
            fixed += OF_TIME * ("temporal" in config.components)
            depth, width, patch = len(anatomy.blocks), anatomy.block_widths[0], anatomy.patch_size[0]
            if (depth, width, patch) != self.expected:
                found.append(
                    "it is for {} ({} blocks of width {}, patches of {}), ".format(self.backbone, *self.expected)
                    + f"this model has {depth} blocks of width {width} and patches of {patch}"
                )
        settings = self.wrap_settings()
        for name in fixed:
            if (got := getattr(config, name)) != settings[name]:
                found.append(f"it is for {name}={settings[name]}, this model was wrapped with {name}={got}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        values = dataclasses.asdict(self)
        # JSON has no integers as keys.
        values["augmentation"]["swapped_labels"] = sorted(self.augmentation.swapped_labels.items())
        return {name: _plain(value) for name, value in values.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Recipe:
        """Build a recipe from what `to_dict` returned.

        Raises:
            ConfigError: A field is unknown, missing or invalid.
        """
        fields = dict(_require_fields(cls, "recipe", fields))
        if isinstance(fields.get("augmentation"), Mapping):
            fields["augmentation"] = Augmentation(
                **_require_fields(Augmentation, "augmentation", fields["augmentation"])
            )
        return cls(**fields)

    def to_json(self) -> str:
        """Return the fields as a JSON object."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Build a recipe from what `to_json` returned.

        Raises:
            ConfigError: The text is not a JSON object of known, valid fields.
        """
        require_text("text", text)
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:  # also: integers too long to convert, nesting too deep
            raise ConfigError(f"text of the recipe is not JSON: {error!s:.300}") from error
        return cls.from_dict(fields)


_WRAP = ("scale", "drop_path", "head_dropout", *OF_TIME, "tubelet_size", "adapter_activation")


def _expected(value: object) -> ExpectedModel | None:
    if value is None:
        return None
    items = read_items(value, refusal := "expected must be depth, width and patch size of the image model")
    if len(items) != len(ExpectedModel._fields):
        raise ConfigError(f"{refusal}, got {shown(value)}")
    return ExpectedModel(*(require_integer("each of expected", item, low=1) for item in items))


def _require_fields(kind: Any, what: str, fields: Any) -> Mapping[str, Any]:
    known = {field.name: field for field in dataclasses.fields(kind)}
    if not isinstance(fields, Mapping) or not all(isinstance(name, str) for name in fields):
        raise ConfigError(f"a {what} must be a mapping of settings by name, got {shown(fields)}")
    if unknown := sorted(set(fields) - set(known)):
        raise ConfigError(f"unknown {what} fields {shown(unknown)}; expected some of {sorted(known)}")
    missing = dataclasses.MISSING
    needed = {name for name, one in known.items() if one.default is missing and one.default_factory is missing}
    if lacking := sorted(needed - set(fields)):
        raise ConfigError(f"the {what} lacks {', '.join(lacking)}")
    return fields


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
