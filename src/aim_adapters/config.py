"""The settings of a wrapped model, and how it runs, validated once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

from aim_adapters.arguments import (
    read_items,
    require_choice,
    require_flags,
    require_integer,
    require_number,
    require_text,
    shown,
)
from aim_adapters.errors import ConfigError

COMPONENTS = ("temporal", "spatial", "joint")
LAYER_CHOICES = ("all", "bottom_half", "top_half", "alternate")
LAYOUT_CHOICES = ("auto", "BTCHW", "BCTHW")
TEMPORAL_CHOICES = ("attention", "conv", "both")
ATTENTION_CHOICES = ("auto", "triton", "sdpa", "eager")
MEMORY_CHOICES = ("fast", "balanced", "low")
PRECISION_CHOICES = ("auto", "fp8")
ACTIVATION_CHOICES = ("gelu", "none")

# Settings that change what the same tensors compute, beside those that show in the tensors' names and shapes.
MEANING = (
    "num_frames",
    "tubelet_size",
    "scale",
    "components",
    "temporal_input_adapter",
    "temporal",
    "adapter_activation",
)

# Settings that say by what a model sees time, which one without the component "temporal" does not.
OF_TIME = ("temporal_input_adapter", "temporal", "conv_kernel", "conv_layers")

# Settings that earlier versions saved and that say nothing of what is computed.
_RETIRED = frozenset({"attention"})

AdapterActivation = Literal["gelu", "none"]
InputLayout = Literal["auto", "BTCHW", "BCTHW"]
Temporal = Literal["attention", "conv", "both"]
Attention = Literal["auto", "triton", "sdpa", "eager"]
Fused = Literal["auto"] | bool
Memory = Literal["fast", "balanced", "low"]
FrozenPrecision = Literal["auto", "fp8"]


@dataclass(frozen=True)
class AIMConfig:
    """How an image transformer is adapted to video (AIM, ICLR 2023).

    Args:
        num_frames: Frames per input clip, T >= 1.
        bottleneck: Width of an adapter as a share of the model's width: ``int(bottleneck * D)`` (Table 8).
        scale: Factor ``s`` on the joint adapter (Eq. 5).
        num_classes: ``None``: a trainable copy of the model's own classification layer if it has one;
            ``K``: a new layer with K outputs; ``0``: features.
        components: Which of ``"temporal"``, ``"spatial"``, ``"joint"`` are added (the ladder of Table 1);
            ``()`` is the frozen space-only model with a trainable head.
        layers: Adapted blocks (Table 7): ``"all"``, ``"bottom_half"``, ``"top_half"``, ``"alternate"``
            (every second block from the first) or block indices, negative ones counting from the end.
        temporal_input_adapter: Add an adapter with an inner skip between norm and temporal attention (SSv2).
        drop_path: Highest stochastic depth rate, on the temporal and joint branches, rising linearly with depth.
        head_dropout: Dropout rate before the classification layer.
        train_norm: Train a copy of the final norm.
        tubelet_size: Consecutive input frames averaged before the patch embedding (Swin: 2).
        input_layout: Layout of 5-D input; ``"auto"`` tells the two apart by frames and channels.
        temporal: By what the component ``"temporal"`` sees time: ``"attention"``, the block's own over frames (Eq. 3);
            ``"conv"``, a convolution over frames in front of the block, after ST-Adapter; or ``"both"``.
        conv_kernel: Frames that the convolution sees: odd, >= 3.
        conv_layers: Blocks that have the convolution, as ``layers``; ``None``: those of ``layers``.
        adapter_activation: ``"gelu"`` between the two projections of every adapter (Figure 2a), or ``"none"``: linear
            adapters, of which `merge_adapters` folds the spatial ones into the image model. A convolution over frames
            keeps its GELU.

    Raises:
        ConfigError: A field has the wrong type or lies outside its range.
    """

    num_frames: int
    bottleneck: float = 0.25
    scale: float = 0.5
    num_classes: int | None = None
    components: tuple[str, ...] = COMPONENTS
    layers: str | tuple[int, ...] = "all"
    temporal_input_adapter: bool = False
    drop_path: float = 0.0
    head_dropout: float = 0.0
    train_norm: bool = True
    tubelet_size: int = 1
    input_layout: InputLayout = "auto"
    temporal: Temporal = "attention"
    conv_kernel: int = 3
    conv_layers: str | tuple[int, ...] | None = None
    adapter_activation: AdapterActivation = "gelu"

    def __post_init__(self) -> None:
        """Normalize and validate every field."""
        put = object.__setattr__  # the dataclass is frozen; this is its constructor
        put(self, "num_frames", require_integer("num_frames", self.num_frames, low=1))
        put(self, "bottleneck", require_number("bottleneck", self.bottleneck, low=0.0, high=65536.0, open_low=True))
        put(self, "scale", require_number("scale", self.scale))
        if self.num_classes is not None:
            put(self, "num_classes", require_integer("num_classes", self.num_classes, low=0))
        put(self, "components", _components(self.components))
        put(self, "layers", _layers("layers", self.layers))
        require_flags(temporal_input_adapter=self.temporal_input_adapter, train_norm=self.train_norm)
        for name in ("drop_path", "head_dropout"):
            put(self, name, require_number(name, getattr(self, name), low=0.0, high=1.0))
        put(self, "tubelet_size", require_integer("tubelet_size", self.tubelet_size, low=1))
        require_choice("input_layout", self.input_layout, LAYOUT_CHOICES)
        require_choice("adapter_activation", self.adapter_activation, ACTIVATION_CHOICES)
        if self.num_frames % self.tubelet_size:
            raise ConfigError(
                f"num_frames must be a multiple of tubelet_size, got {self.num_frames} frames in tubelets of "
                f"{self.tubelet_size}"
            )
        if self.temporal_input_adapter and "temporal" not in self.components:
            raise ConfigError(
                "temporal_input_adapter=True needs the temporal component, got components="
                f"{self.components!r}; add 'temporal' or leave temporal_input_adapter off"
            )
        self._check_convolution()

    def _check_convolution(self) -> None:
        require_choice("temporal", self.temporal, TEMPORAL_CHOICES)
        kernel = require_integer("conv_kernel", self.conv_kernel, low=3, high=2**16)
        if kernel % 2 == 0:
            raise ConfigError(f"conv_kernel must be odd, as a frame sees as many before as behind it, got {kernel}")
        object.__setattr__(self, "conv_kernel", kernel)
        if self.conv_layers is not None:
            object.__setattr__(self, "conv_layers", _layers("conv_layers", self.conv_layers))
        if self.temporal == "attention":
            if kernel != 3 or self.conv_layers is not None:
                raise ConfigError(
                    "conv_kernel and conv_layers describe a convolution, and temporal='attention' has none; pass "
                    f"temporal='conv' or temporal='both', or leave them out, got {kernel} and {shown(self.conv_layers)}"
                )
            return
        if "temporal" not in self.components:
            raise ConfigError(
                f"temporal={self.temporal!r} needs the temporal component, got components={self.components!r}; add "
                "'temporal' to them, or leave temporal out"
            )
        if self.temporal_input_adapter and self.temporal == "conv":
            raise ConfigError(
                "temporal_input_adapter=True adds an adapter before temporal attention, and temporal='conv' has none; "
                "pass temporal='both' or leave temporal_input_adapter off"
            )

    @property
    def attention_frames(self) -> int:
        """Return the frames that temporal attention sees: ``num_frames / tubelet_size``."""
        return self.num_frames // self.tubelet_size

    @property
    def attends_over_frames(self) -> bool:
        """Return whether there is temporal attention, and so temporal positions."""
        return "temporal" in self.components and self.temporal != "conv"

    def adapter_width(self, dim: int) -> int:
        """Return the hidden width of an adapter on a block of width ``dim``.

        Raises:
            ConfigError: The width would be 0.
        """
        width = int(self.bottleneck * require_integer("dim", dim, low=1))
        if width < 1:
            raise ConfigError(
                f"bottleneck={self.bottleneck} gives adapters of width int({self.bottleneck} * {dim}) = 0 on a "
                f"block of width {dim}; use at least {1 / dim:.4g}"
            )
        return width

    def block_drop_path(self, index: int, depth: int) -> float:
        """Return the stochastic depth rate of a block: rates rise linearly, to ``drop_path`` in the last one.

        Args:
            index: The block.
            depth: Number of blocks.
        """
        return self.drop_path * index / max(depth - 1, 1)

    def adapted_blocks(self, depth: int) -> tuple[int, ...]:
        """Return the sorted indices of the blocks that ``layers`` names, of a model with ``depth`` blocks.

        Args:
            depth: Number of blocks.

        Raises:
            ConfigError: An index is out of range or named twice, or no block is left (half of one block).
        """
        return _indices("layers", self.layers, depth)

    def conv_blocks(self, depth: int) -> tuple[int, ...]:
        """Return the sorted indices of the blocks that have the convolution over frames, of a model likewise.

        Args:
            depth: Number of blocks.

        Raises:
            ConfigError: As `adapted_blocks`, of ``conv_layers``.
        """
        if self.temporal == "attention":
            return ()
        if self.conv_layers is None:
            return self.adapted_blocks(depth)
        return _indices("conv_layers", self.conv_layers, depth)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> AIMConfig:
        """Build a config from what `to_dict` returned; ``attention``, which earlier versions had, is left out.

        Raises:
            ConfigError: A field is unknown, missing or invalid.
        """
        if not isinstance(fields, Mapping) or not all(isinstance(name, str) for name in fields):
            raise ConfigError(f"fields must be a mapping of settings by name, got {shown(fields)}")
        fields = {name: fields[name] for name in fields if name not in _RETIRED}
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise ConfigError(f"unknown config fields {shown(unknown)}; expected some of {sorted(known)}")
        if "num_frames" not in fields:
            raise ConfigError(f"config lacks num_frames; got the fields {shown(sorted(fields))}")
        return cls(**fields)

    def to_json(self) -> str:
        """Return the fields as a JSON object."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> AIMConfig:
        """Build a config from what `to_json` returned.

        Raises:
            ConfigError: The text is not a JSON object of known, valid fields.
        """
        require_text("text", text)
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:  # also: integers too long to convert, nesting too deep
            raise ConfigError(f"text of the config is not JSON: {error!s:.300}") from error
        if not isinstance(fields, dict):
            raise ConfigError(f"text must be a JSON object, got {type(fields).__name__}")
        return cls.from_dict(fields)


@dataclass(frozen=True)
class Execution:
    """How adapted blocks run. All ways compute the same, to rounding, and none is part of a checkpoint.

    Args:
        attention: Implementation of temporal attention: ``"auto"``, ``"triton"``, ``"sdpa"`` or ``"eager"``.
        fused: ``"auto"``: run branches fused where they are made of plain layers; ``True``: all, or raise; ``False``:
            none.
        memory: What a training step keeps from the forward pass: ``"fast"``, ``"balanced"`` or ``"low"``.
        frozen_precision: Of products with frozen weights: ``"auto"``, that of tokens or autocast; or ``"fp8"``.

    Raises:
        ConfigError: A field has a value that it cannot have.
    """

    attention: Attention = "auto"
    fused: Fused = "auto"
    memory: Memory = "fast"
    frozen_precision: FrozenPrecision = "auto"

    def __post_init__(self) -> None:
        """Validate every field."""
        require_choice("attention", self.attention, ATTENTION_CHOICES)
        if not (isinstance(self.fused, bool) or (isinstance(self.fused, str) and self.fused == "auto")):
            raise ConfigError(f"fused must be 'auto', True or False, got {shown(self.fused)}")
        require_choice("memory", self.memory, MEMORY_CHOICES)
        require_choice("frozen_precision", self.frozen_precision, PRECISION_CHOICES)

    @property
    def convolution(self) -> str:
        """Return the implementation of a convolution over frames: that of attention, by PyTorch too for ``"sdpa"``."""
        return "eager" if self.attention == "sdpa" else self.attention


def _components(value: object) -> tuple[str, ...]:
    refusal = f"components: expected some of {', '.join(map(repr, COMPONENTS))} in a tuple or list"
    names = read_items(value, refusal)
    for name in names:
        if not isinstance(name, str) or name not in COMPONENTS:
            raise ConfigError(f"{refusal}, got {shown(name)}")
    if len(set(names)) != len(names):
        raise ConfigError(f"components names one twice: {shown(value)}")
    return tuple(name for name in COMPONENTS if name in names)


def _layers(name: str, value: object) -> str | tuple[int, ...]:
    refusal = f"{name}: expected {', '.join(map(repr, LAYER_CHOICES))} or a non-empty list of block indices"
    if isinstance(value, str):
        if value not in LAYER_CHOICES:
            raise ConfigError(f"{refusal}, got {shown(value)}")
        return value
    indices = read_items(value, refusal)
    if not indices or any(isinstance(i, bool) or not isinstance(i, Integral) for i in indices):
        raise ConfigError(f"{refusal}, got {shown(value)}")
    return tuple(int(i) for i in indices)


def _indices(name: str, layers: str | tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Return the sorted indices of the blocks that a setting names."""
    depth = require_integer("depth", depth, low=1, high=2**16)
    if isinstance(layers, str):
        half = depth // 2
        chosen = {
            "all": tuple(range(depth)),
            "bottom_half": tuple(range(half)),
            "top_half": tuple(range(depth - half, depth)),
            "alternate": tuple(range(0, depth, 2)),
        }[layers]
        if not chosen:
            raise ConfigError(f"{name}={layers!r} names no block of a model of depth {depth}; use 'all'")
        return chosen
    for index in layers:
        if not -depth <= index < depth:
            raise ConfigError(
                f"{name} names block {shown(index)}, but the model has {depth} blocks; use indices from "
                f"{-depth} to {depth - 1}"
            )
    indices = sorted(index % depth for index in layers)
    if len(set(indices)) != len(indices):
        raise ConfigError(f"{name} names a block twice: {shown(layers)} of {depth} blocks")
    return tuple(indices)
