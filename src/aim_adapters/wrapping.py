"""Image transformers turned into video models in place, and back.

All checks are made and all new modules are built before the first change, so a failed wrap changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ContextDecorator
from typing import Any, TypeVar

import torch
from torch import nn

from aim_adapters.anatomy import BackboneAnatomy, fingerprint
from aim_adapters.backbones import read_anatomy
from aim_adapters.clip_spec import named_classes
from aim_adapters.config import COMPONENTS, AdapterActivation, AIMConfig, Attention, Execution, InputLayout, Temporal
from aim_adapters.core import (
    AdapterSet,
    BlockState,
    RootState,
    WholeModel,
    WrapRecord,
    build_adapter,
    enough_memory,
    find_roots,
    install_adapter,
    listed,
    only_root,
    patch,
    remove,
    require_bare,
    require_wrappable,
    sample_weights,
    states,
    tuned_parameters,
    warn_idle_taps,
    warn_untrained,
)
from aim_adapters.errors import StateError, warn
from aim_adapters.ops.temporal_attention import choose

# Name of the adapter that wrapping makes.
DEFAULT_NAME = "default"

ModelT = TypeVar("ModelT", bound=nn.Module)
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def wrap_image_model(
    model: ModelT,
    num_frames: int,
    bottleneck: float = 0.25,
    scale: float = 0.5,
    *,
    num_classes: int | None = None,
    components: Sequence[str] = COMPONENTS,
    layers: str | Sequence[int] = "all",
    temporal_input_adapter: bool = False,
    drop_path: float = 0.0,
    head_dropout: float = 0.0,
    train_norm: bool = True,
    tubelet_size: int = 1,
    attention: Attention = "auto",
    input_layout: InputLayout = "auto",
    temporal: Temporal = "attention",
    conv_kernel: int = 3,
    conv_layers: str | Sequence[int] | None = None,
    adapter_activation: AdapterActivation = "gelu",
    labels: Sequence[str] | None = None,
) -> ModelT:
    """Turn a pre-trained image transformer into a video model, in place (AIM, ICLR 2023).

    The image model's own parameters are frozen and never changed. What trains are the adapters, the temporal embedding,
    a copy of the final norm, and the classification layer, in the dtype of the image model. Before training, the video
    model equals the image model averaged over frames. Its input is a floating-point video ``[B, T, C, H, W]``,
    ``[B, C, T, H, W]`` or flat ``[B*T, C, H, W]``, normalized as the image model's; its output is the image model's,
    once per clip. Its other methods that take images take the same videos, and return one row per frame.

    Args:
        model: A supported image transformer (see `list_backbones`), or a CLIP model that holds one.
        num_frames: Frames per input clip, T >= 1.
        bottleneck: Width of an adapter as a fraction of the model's width (Table 8).
        scale: Factor on the joint adapter (Eq. 5).
        num_classes: ``None``: a trainable copy of the model's own classification layer, if it has one. ``K``: a new
            layer with K outputs. ``0``: no layer; the model returns features.
        components: Which of ``"temporal"``, ``"spatial"``, ``"joint"`` to add (Table 1).
        layers: ``"all"``, ``"bottom_half"``, ``"top_half"``, ``"alternate"`` or block indices (Table 7). The temporal
            embedding is added before the first adapted block, so no gradients are computed below it.
        temporal_input_adapter: Add an adapter with a skip connection before temporal attention (used for SSv2).
        drop_path: Stochastic depth rate of the last block, in [0, 1); rates rise linearly with depth.
        head_dropout: Dropout rate before the classification layer, in [0, 1).
        train_norm: Whether a copy of the final norm trains.
        tubelet_size: Consecutive input frames averaged before the patch embedding.
        attention: Implementation of temporal attention: ``"auto"``, ``"triton"``, ``"sdpa"`` or ``"eager"``.
        input_layout: Layout of 5-D input: ``"auto"``, ``"BTCHW"`` or ``"BCTHW"``.
        temporal: By what the component ``"temporal"`` sees time: ``"attention"``, ``"conv"``, a convolution over frames
            in front of each block (after ST-Adapter, https://arxiv.org/abs/2206.13559), or ``"both"``.
        conv_kernel: Frames that the convolution sees: odd, >= 3.
        conv_layers: Blocks that have the convolution, as ``layers``; None: those of ``layers``.
        adapter_activation: ``"gelu"``, or ``"none"`` for linear adapters, of which `merge_adapters` folds the spatial
            ones into the image model; a convolution over frames keeps its GELU.
        labels: Names of the classes in the order of the outputs, saved with the adapters; they imply ``num_classes``.

    Returns:
        The same object.

    Raises:
        TypeError: ``model`` is not a module.
        ConfigError: A setting is invalid, or does not fit the model.
        StateError: The model is wrapped already, compiled, sharded or distributed, or the call is made under
            ``torch.inference_mode``.
        UnsupportedModelError: The model cannot be adapted exactly.
        UnsupportedKernelError: The named attention implementation cannot run.
    """
    names, num_classes = named_classes(labels, num_classes)
    config = AIMConfig(
        num_frames=num_frames,
        bottleneck=bottleneck,
        scale=scale,
        num_classes=num_classes,
        components=components,  # type: ignore[arg-type]  # AIMConfig makes tuples of sequences
        layers=layers,  # type: ignore[arg-type]
        temporal_input_adapter=temporal_input_adapter,
        drop_path=drop_path,
        head_dropout=head_dropout,
        train_norm=train_norm,
        tubelet_size=tubelet_size,
        input_layout=input_layout,
        temporal=temporal,
        conv_kernel=conv_kernel,
        conv_layers=conv_layers,  # type: ignore[arg-type]
        adapter_activation=adapter_activation,
    )
    wrap_with_config(model, config, Execution(attention), labels=names)
    warn_idle_taps(config)
    if any(parameter.dtype == torch.float16 for state in states(model) for parameter in state.parameters()):
        warn(
            "the image model is in float16, and so are its adapters, whose gradients torch.amp.GradScaler refuses; to "
            "train in float16, wrap the float32 model, then call aim.set_base_dtype(model, torch.float16) and run it "
            "under torch.autocast"
        )
    return model


def wrap_with_config(
    model: ModelT,
    config: AIMConfig,
    execution: Execution | None = None,
    *,
    filled_later: bool = False,
    labels: Sequence[str] | None = None,
) -> ModelT:
    """Wrap an image model as `wrap_image_model` does, with the settings of a config.

    Args:
        model: The image model.
        config: The settings.
        execution: How blocks run; by default the best choice for each block.
        filled_later: The image model may be untrained, as its weights are yet to come.
        labels: Names of the classes, as many as there are.

    Returns:
        The same object.

    Raises:
        As `wrap_image_model`.
    """
    require_wrappable(model)
    execution = execution or Execution()
    choose(execution.attention)
    anatomy = read_anatomy(model)
    root, record = model.get_submodule(anatomy.root), make_record(model, anatomy)
    with enough_memory(config):
        adapter = build_adapter(root, config, record=record, name=DEFAULT_NAME, execution=execution, owner=model)
    adapter.state.clip = {} if labels is None else {"labels": list(labels)}
    if not filled_later:
        warn_untrained(record.samples, anatomy)
    wrap_with_adapter(model, adapter)
    if anatomy.caution:
        warn(anatomy.caution)
    return model


def set_rates(model: nn.Module, *, drop_path: float, head_dropout: float) -> None:
    """Set the rates of a recipe where a model was wrapped without one, which is the only time that they are open.

    Args:
        model: A wrapped model.
        drop_path: Stochastic depth rate of the last block.
        head_dropout: Dropout rate before the classification layer.

    Raises:
        ConfigError: A rate is out of range.
        StateError: The model is not wrapped.
    """
    state = only_root(model).state
    old = state.config
    config = dataclasses.replace(
        old, drop_path=old.drop_path or drop_path, head_dropout=old.head_dropout or head_dropout
    )
    state.config = config
    for container in states(model):
        if isinstance(container, BlockState):
            container.drop_path = config.block_drop_path(container.index, len(state.anatomy.blocks))


def make_record(model: nn.Module, anatomy: BackboneAnatomy) -> WrapRecord:
    """Return a record of what unwrapping has to restore.

    Args:
        model: The image model, not wrapped.
        anatomy: Its anatomy.
    """
    root = model.get_submodule(anatomy.root)
    return WrapRecord(
        anatomy=anatomy,
        requires_grad=frozenset(n for n, p in model.named_parameters() if p.requires_grad),
        training=frozenset(n for n, m in model.named_modules() if m.training),
        fingerprint=fingerprint(root, anatomy),
        samples=sample_weights(root),
    )


def wrap_with_adapter(model: nn.Module, adapter: AdapterSet) -> None:
    """Freeze an image model and install its first adapter; undo everything on an error.

    Args:
        model: The image model, not wrapped.
        adapter: The adapter that was built for it.
    """
    record = adapter.state.record
    if tuned := tuned_parameters(model):
        warn(
            f"wrapping freezes layers by which another tool fine-tunes this model: {listed(tuned)}; merge them into "
            "the image model first (merge_and_unload() of peft)"
        )
    done = False
    try:
        model.requires_grad_(False)
        install_adapter(model.get_submodule(record.anatomy.root), adapter)
        if (anatomy := record.anatomy).root:
            patch(model, WholeModel, (anatomy.root, anatomy.blocked_methods, anatomy.overrides))
        model.train(model.training)
        done = True
    finally:
        if not done:
            remove(model)
            _restore_flags(model, record)


def unwrap_image_model(model: ModelT) -> ModelT:
    """Restore exactly the image model that was wrapped: types, keys, flags and outputs. Adapters are deleted.

    Args:
        model: The object that was passed to `wrap_image_model`, or a module that contains it.

    Returns:
        The same object.

    Raises:
        TypeError: ``model`` is not a module.
        StateError: It is not wrapped, holds several wrapped models, or is compiled, sharded or distributed.
    """
    path, _, state = only_root(model)
    require_bare(model, "unwrap_image_model", "gather the full state dict and load it into a fresh model")
    expected = state.anatomy.root
    if not f".{path}".endswith(f".{expected}") and expected:
        raise StateError(
            f"this module was wrapped as {expected!r} of a larger model; unwrap the model that was given to "
            "wrap_image_model"
        )
    outer = path[: len(path) - len(expected)].rstrip(".") if expected else path
    whole = model.get_submodule(outer)
    remove(whole)
    state.graphs = None
    _restore_flags(whole, state.record)
    return model


def disable_adapters(model: nn.Module) -> AbstractContextManager[None]:
    """Run the frozen image model inside a ``with`` block: each frame by itself, outputs averaged over frames.

    Without ``with``, the call does nothing and warns about it.

    Args:
        model: A wrapped model.

    Returns:
        A context manager: ``with aim.disable_adapters(model): ...``

    Raises:
        TypeError: ``model`` is not a module.
        StateError: The model is not wrapped.
    """
    return _Disabled([wrapped.state for wrapped in find_roots(model)])


class _Disabled(AbstractContextManager[None], ContextDecorator):
    """A context in which the adapters of some wrapped models are disabled."""

    def __init__(self, states: list[RootState]) -> None:
        self._states = states
        self._before: list[list[bool]] = []  # one entry for each `with` that was entered and not left
        self._used = False

    def __call__(self, function: FunctionT) -> FunctionT:
        self._used = True
        return super().__call__(function)

    def __enter__(self) -> None:
        self._used = True
        self._before.append([state.enabled for state in self._states])
        for state in self._states:
            state.enabled = False

    def __exit__(self, *error: object) -> None:
        for state, enabled in zip(self._states, self._before.pop(), strict=True):
            state.enabled = enabled

    def __del__(self) -> None:
        if not self._used:
            warn("disable_adapters(model) did nothing: write `with aim.disable_adapters(model): ...`")


def _restore_flags(model: nn.Module, record: WrapRecord) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in record.requires_grad)
    untouched = ("" in record.training) == model.training
    for name, module in model.named_modules():
        # The caller may have called train() or eval() meanwhile, which sets every module of an image model.
        module.training = name in record.training if untouched else model.training
