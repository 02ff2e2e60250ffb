"""Turn an image transformer into a video model in place, and back.

Everything is validated and every new part is built before the first change, so a wrap that fails changes nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict, TypeVar

import torch
from torch import nn

from aim_adapters.anatomy import BackboneAnatomy, HeadAnatomy
from aim_adapters.backbones import read_anatomy
from aim_adapters.block import AdaptedBlock
from aim_adapters.config import COMPONENTS, AIMConfig, Attention, InputLayout
from aim_adapters.errors import ConfigError, StateError, UnsupportedModelError
from aim_adapters.guards import only_root, require_bare, require_wrappable
from aim_adapters.layers.adapter import Adapter
from aim_adapters.layers.head import new_classifier
from aim_adapters.layers.state import AIMState, BlockState, NormState, states
from aim_adapters.layers.temporal import new_temporal_bias, new_temporal_embedding
from aim_adapters.ops.temporal_attention import choose
from aim_adapters.parameters import find_roots
from aim_adapters.patching import Patched, patch, unpatch
from aim_adapters.root import ClipHead, RootState, TokenEntry, TrainedNorm, VideoRoot, WholeModel, WrapRecord

ModelT = TypeVar("ModelT", bound=nn.Module)


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
) -> ModelT:
    """Turn a pre-trained image transformer into a video model, in place (AIM, ICLR 2023).

    The image model's own parameters are frozen and never changed; adapters, temporal embedding, a copy of the final
    norm and the classification layer train. At the start the video model equals the image model averaged over
    frames. The model then takes ``[B, T, C, H, W]``, ``[B, C, T, H, W]`` or flat ``[B*T, C, H, W]`` and returns what
    it returned for an image, once per clip.

    Args:
        model: A supported image transformer (see `list_backbones`), or a CLIP model that holds one.
        num_frames: Frames per input clip, T >= 1.
        bottleneck: Width of an adapter as a share of the model's width (Table 8).
        scale: Factor on the joint adapter (Eq. 5).
        num_classes: ``None``: a trainable copy of the model's own classification layer if it has one; ``K``: a new
            layer with K outputs; ``0``: features.
        components: Which of ``"temporal"``, ``"spatial"``, ``"joint"`` to add (Table 1).
        layers: ``"all"``, ``"bottom_half"``, ``"top_half"``, ``"alternate"`` or block indices (Table 7). Below the
            first adapted block nothing records a graph: the temporal embedding enters there.
        temporal_input_adapter: Add an adapter with an inner skip in front of temporal attention (SSv2).
        drop_path: Highest stochastic depth rate, in [0, 1), rising linearly with depth.
        head_dropout: Dropout rate in front of the classification layer, in [0, 1).
        train_norm: Train a copy of the final norm.
        tubelet_size: Consecutive input frames averaged before the patch embedding.
        attention: ``"auto"``, ``"sdpa"`` or ``"eager"``: implementation of temporal attention.
        input_layout: ``"auto"``, ``"BTCHW"`` or ``"BCTHW"``: how 5-D input is read.

    Returns:
        The same object.

    Raises:
        TypeError: ``model`` is not a module.
        ConfigError: A setting is wrong, or does not fit the model.
        StateError: The model is wrapped already, or was compiled, sharded or wrapped by another library before.
        UnsupportedModelError: The model cannot be adapted exactly.
        UnsupportedKernelError: The named attention implementation cannot run.
    """
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
        attention=attention,
        input_layout=input_layout,
    )
    return wrap_with_config(model, config)


def wrap_with_config(model: ModelT, config: AIMConfig) -> ModelT:
    """Wrap as `wrap_image_model` does, from a config.

    Args:
        model: The image model.
        config: The settings.

    Raises:
        As `wrap_image_model`.
    """
    require_wrappable(model)
    anatomy = read_anatomy(model)
    choose(config.attention)
    _Plan.make(model, anatomy, config).apply()
    return model


def unwrap_image_model(model: ModelT) -> ModelT:
    """Give back exactly the image model that was wrapped: types, keys, flags, outputs. Adapters are dropped.

    Args:
        model: The object that was given to `wrap_image_model`, or a plain module that holds it.

    Returns:
        The same object.

    Raises:
        TypeError: ``model`` is not a module.
        StateError: It is not wrapped, holds several wrapped models, or is sharded or replicated.
    """
    path, _, shared = only_root(model)
    require_bare(model, "unwrap_image_model", "gather the full state dict and load it into a fresh model")
    expected = shared.record.anatomy.root
    if not f".{path}".endswith(f".{expected}") and expected:
        raise StateError(
            f"this module was wrapped as {expected!r} of a larger model; unwrap the model that was given to "
            "wrap_image_model"
        )
    outer = path[: len(path) - len(expected)].rstrip(".") if expected else path
    whole = model.get_submodule(outer)
    _remove(whole)
    _restore_flags(whole, shared.record)
    return model


@contextmanager
def disable_adapters(model: nn.Module) -> Iterator[None]:
    """Run the frozen image model itself inside the block: each frame on its own, outputs averaged over frames.

    Args:
        model: A wrapped model.

    Raises:
        StateError: The model is not wrapped.
    """
    shared = [shared for _, shared in find_roots(model).values()]
    before = [s.enabled for s in shared]
    for s in shared:
        s.enabled = False
    try:
        yield
    finally:
        for s, enabled in zip(shared, before, strict=True):
            s.enabled = enabled


def _trainable_copy(module: nn.Module) -> nn.Module:
    """Copy a norm or head; its hooks stay with the original, which is still called."""
    copied = copy.deepcopy(module).requires_grad_(True)
    for name in [name for name in vars(copied) if name.endswith("_hooks")]:
        getattr(copied, name).clear()
    return copied


class _Place(TypedDict):
    device: torch.device
    dtype: torch.dtype


@dataclass
class _Plan:
    """Everything a wrap will do, made before anything is changed."""

    model: nn.Module
    root: nn.Module
    state: RootState
    patches: list[tuple[nn.Module, type[Patched], object]]
    containers: list[tuple[nn.Module, nn.Module]]
    holders: list[nn.Module]

    @classmethod
    def make(cls, model: nn.Module, anatomy: BackboneAnatomy, config: AIMConfig) -> _Plan:
        root = model.get_submodule(anatomy.root)
        if anatomy.whole_model and config.num_classes is not None:
            raise ConfigError(
                f"num_classes={config.num_classes} would replace the image features that this "
                f"{type(model).__name__} compares with text; wrap model.{anatomy.root} for a classifier, or leave "
                "num_classes=None"
            )
        if anatomy.pooled_outputs and not anatomy.heads and config.num_classes:
            raise ConfigError(
                f"num_classes={config.num_classes}: {type(model).__name__} returns hidden states and has no place for "
                "a classification layer; load the same weights as its ...ForImageClassification class, or wrap it with "
                "num_classes=None and put a layer of your own behind pooler_output"
            )
        adapted = config.adapted_blocks(len(anatomy.blocks)) if config.components else ()
        blocks = [(i, root.get_submodule(anatomy.blocks[i][0])) for i in adapted]
        if len({id(root.get_submodule(path)) for path, _ in anatomy.blocks}) != len(anatomy.blocks):
            raise UnsupportedModelError("the model runs one block at several depths; shared blocks cannot be adapted")
        embedding = None
        if "temporal" in config.components and not any(anatomy.blocks[i][1].temporal for i in adapted):
            raise ConfigError(
                f"none of the blocks {list(adapted)} attends over time in this model (of {anatomy.family}, only "
                f"{[i for i, (_, block) in enumerate(anatomy.blocks) if block.temporal]} do); choose others by layers, "
                "or leave 'temporal' out of components"
            )
        if "temporal" in config.components and anatomy.entry is not None:
            first = adapted[0]
            place = _place_of(root.get_submodule(anatomy.blocks[first][0]))
            embedding = new_temporal_embedding(config.attention_frames, anatomy.block_widths[first], **place)
        state = RootState(config, embedding, bypassed=_bypassed(root, anatomy, config))
        state.record = WrapRecord(
            anatomy=anatomy,
            requires_grad=frozenset(n for n, p in model.named_parameters() if p.requires_grad),
            training=frozenset(n for n, m in model.named_modules() if m.training),
        )
        plan = cls(model, root, state, [], [(root, state)], [])
        plan._add_blocks(blocks, anatomy, config)
        plan._add_head(anatomy, config)
        if config.train_norm and anatomy.norm is not None:
            norm = root.get_submodule(anatomy.norm)
            trained = _trainable_copy(norm)
            plan.containers.append((norm, NormState(trained, shared=state)))
            plan.patches.append((norm, TrainedNorm, None))
        if embedding is not None and anatomy.entry is not None and adapted[0] == 0:
            entry = root.get_submodule(anatomy.entry)
            plan.holders.append(entry)
            plan.patches.append((entry, TokenEntry, anatomy.entry_side))
        hidden = anatomy.hidden_when_headed
        plan.patches.append((root, VideoRoot, (hidden, anatomy.blocked_methods)))
        if anatomy.root:
            plan.patches.append((model, WholeModel, anatomy.root))
        return plan

    def _add_blocks(self, blocks: list[tuple[int, nn.Module]], anatomy: BackboneAnatomy, config: AIMConfig) -> None:
        for index, block in blocks:
            dim, place = anatomy.block_widths[index], _place_of(block)
            block_anatomy = anatomy.blocks[index][1]
            names = list(config.components) + ["temporal_input"] * config.temporal_input_adapter
            if not block_anatomy.temporal:
                names = [name for name in names if not name.startswith("temporal")]
            adapters = {
                name: Adapter(dim, config.adapter_width(dim), skip=name in ("spatial", "temporal_input"), **place)
                for name in names
            }
            rate = config.drop_path * index / max(len(anatomy.blocks) - 1, 1)
            # Below the first adapted block there is nothing of ours, so time enters there and not at the tokens'
            # entry: the frozen part records no graph, and its outputs can be computed once per clip.
            enters = index == blocks[0][0] != 0
            bias = None
            if "temporal" in names and anatomy.entry is None:
                bias = new_temporal_bias(
                    config.attention_frames, block_anatomy.heads(getattr(block, block_anatomy.attention)), **place
                )
            container = BlockState(
                f"blocks.{index}.", adapters, shared=self.state, temporal_bias=bias, drop_path=rate, enters=enters
            )
            self.containers.append((block, container))
            self.patches.append((block, AdaptedBlock, block_anatomy))

    def _add_head(self, anatomy: BackboneAnatomy, config: AIMConfig) -> None:
        place = _place_of(self.root.get_submodule(anatomy.blocks[-1][0]))
        for head in anatomy.heads:
            own = self.root.get_submodule(head.path)
            copied = config.num_classes is None and _has_classifier(head, self.root)
            if copied:
                self.state.add_module(head.name, _trainable_copy(own))
            self.holders.append(own)
            self.patches.append((own, ClipHead, (head.name, config.num_classes is None and not copied)))
        if config.num_classes:
            for name in [head.name for head in anatomy.heads] or ["head"]:
                self.state.add_module(name, new_classifier(anatomy.output_width, config.num_classes, **place))

    def apply(self) -> None:
        """Change the model; undo everything if that fails half-way."""
        done = False
        try:
            for module, container in self.containers:
                module.add_module("aim", container)
            for module in self.holders:
                module.aim_shared = (self.state,)  # type: ignore[assignment]
            for module, mixin, spec in self.patches:
                patch(module, mixin, spec)
            relabel, num_classes = self.state.record.anatomy.relabel, self.state.config.num_classes
            if relabel is not None and num_classes:
                self.state.labels = relabel(self.root, num_classes)
            ours = {id(p) for state in states(self.model) for p in state.parameters()}
            for parameter in self.model.parameters():
                parameter.requires_grad_(id(parameter) in ours)
            self.model.train(self.model.training)
            done = True
        finally:
            if not done:
                _remove(self.model)
                _restore_flags(self.model, self.state.record)


def _place_of(module: nn.Module) -> _Place:
    """Return device and dtype for new layers beside ``module``: those of its first matrix.

    Norms are often kept in float32 around low-precision weights, so they do not decide.
    """
    weights = [p for p in module.parameters() if p.is_floating_point()]
    if not weights:
        raise UnsupportedModelError(f"{type(module).__name__} has no floating-point parameters to adapt")
    chosen = next((p for p in weights if p.ndim >= 2), weights[0])
    return {"device": chosen.device, "dtype": chosen.dtype}


def _has_classifier(head: HeadAnatomy, root: nn.Module) -> bool:
    """Tell whether there is a classification layer at this head to make a trained copy of."""
    return head.classifier and isinstance(root.get_submodule(head.path), nn.Linear)


def _bypassed(root: nn.Module, anatomy: BackboneAnatomy, config: AIMConfig) -> frozenset[str]:
    paths = [anatomy.norm] if config.train_norm and anatomy.norm is not None else []
    names: list[str] = []
    for head in anatomy.heads:
        if config.num_classes is not None or _has_classifier(head, root):
            paths.append(head.path)
    if config.num_classes is not None:
        names += [name for name in anatomy.hidden_when_headed if root._parameters.get(name) is not None]
    for path in paths:
        names += [f"{path}.{name}" for name, _ in root.get_submodule(path).named_parameters()]
    return frozenset(names)


def _remove(model: nn.Module) -> None:
    """Take out everything of ours."""
    for root, shared in [(m, m._modules["aim"]) for m in model.modules() if "aim" in m._modules]:
        if not isinstance(shared, RootState):
            continue
        relabel = shared.record.anatomy.relabel
        if relabel is not None and shared.labels is not None:
            relabel(root, shared.labels)
    for module in list(model.modules()):
        if isinstance(module, Patched):
            unpatch(module)
        if isinstance(module._modules.get("aim"), AIMState):
            del module._modules["aim"]
        module.__dict__.pop("aim_shared", None)


def _restore_flags(model: nn.Module, record: WrapRecord) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in record.requires_grad)
    untouched = ("" in record.training) == model.training
    for name, module in model.named_modules():
        # The caller may have called train() or eval() meanwhile, which sets every module of an image model.
        module.training = name in record.training if untouched else model.training
