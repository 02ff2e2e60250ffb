"""Build an adapter whole, before anything of the image model is changed."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import TypedDict

import torch
from torch import nn

from aim_adapters.anatomy import BackboneAnatomy, HeadAnatomy
from aim_adapters.config import AIMConfig, Execution
from aim_adapters.core.block import AdaptedBlock
from aim_adapters.core.foreign import inside
from aim_adapters.core.guards import can_train
from aim_adapters.core.mixins import ClipHead, PatchProduct, TokenEntry, TrainedNorm
from aim_adapters.core.patching import Patched, unpatch
from aim_adapters.core.readers import ImageReader, inner_readers
from aim_adapters.core.records import Layout, Patch, WrapRecord
from aim_adapters.core.root import VideoRoot
from aim_adapters.core.state import (
    AdapterSet,
    AIMState,
    BlockState,
    NormState,
    RootState,
    container_of,
    declared_tensors,
)
from aim_adapters.errors import ConfigError, UnsupportedModelError
from aim_adapters.layers import Adapter, TemporalConv, new_classifier, new_temporal_bias, new_temporal_embedding

_NEW_CLASSIFIER = "num_classes=K for a new classification layer"


class _Place(TypedDict):
    device: torch.device
    dtype: torch.dtype


def build_adapter(
    root: nn.Module,
    config: AIMConfig,
    *,
    record: WrapRecord,
    name: str,
    execution: Execution | None = None,
    owner: nn.Module | None = None,
    on_meta: bool = False,
) -> AdapterSet:
    """Build everything that adapts an image model, changing nothing.

    Args:
        root: The image model, wrapped or not.
        config: The settings.
        record: What unwrapping has to put back, with the anatomy.
        name: Name of the adapter.
        execution: How blocks run; by default as chosen for each.
        owner: The larger model that holds ``root``, for messages.
        on_meta: Build new layers on the meta device, for tensors that come from a file.

    Raises:
        ConfigError: A setting does not fit the model.
        UnsupportedModelError: The model cannot be adapted exactly.
    """
    anatomy = record.anatomy
    require_place_for_head(anatomy, config, owner=type(owner or root).__name__)
    adapted = config.adapted_blocks(len(anatomy.blocks)) if config.components else ()
    convolved = config.conv_blocks(len(anatomy.blocks))
    if len({id(root.get_submodule(path)) for path, _ in anatomy.blocks}) != len(anatomy.blocks):
        raise UnsupportedModelError("the model runs one block at several depths; shared blocks cannot be adapted")
    if config.attends_over_frames and not any(anatomy.blocks[i][1].temporal for i in adapted):
        raise ConfigError(
            f"none of the blocks {list(adapted)} attends over time in this model (of {anatomy.family}, only "
            f"{[i for i, (_, block) in enumerate(anatomy.blocks) if block.temporal]} do); choose others by layers, "
            "leave 'temporal' out of components, or pass temporal='conv'"
        )
    builder = _Builder(root, anatomy, config, on_meta=on_meta)
    embedding = None
    if config.attends_over_frames and anatomy.entry is not None:
        place = builder.place_of(root.get_submodule(anatomy.blocks[adapted[0]][0]))
        embedding = new_temporal_embedding(config.attention_frames, anatomy.block_widths[adapted[0]], **place)
        if adapted[0] == 0:
            builder.hold(anatomy.entry, TokenEntry, anatomy.entry_side)
    if anatomy.patch_conv is not None and _is_product(root.get_submodule(anatomy.patch_conv)):
        builder.hold(anatomy.patch_conv, PatchProduct, None)
    state = RootState(
        config,
        embedding,
        name=name,
        record=record,
        execution=execution or Execution(),
        bypassed=_bypassed(root, anatomy, config),
    )
    methods = (anatomy.blocked_methods, anatomy.image_methods)
    builder.add("", state, VideoRoot, (anatomy.hidden_when_headed, *methods, anatomy.overrides, anatomy.class_count))
    for index in range(len(anatomy.blocks)):  # those without adapters run fused, too
        builder.add_block(index, state, adapted=adapted, convolved=convolved)
    builder.add_heads(state)
    if config.train_norm and anatomy.norm is not None:
        trained = builder.copy_of(anatomy.norm, instead="train_norm=False")
        builder.add(anatomy.norm, NormState(trained, root=state), TrainedNorm, None)
    builder.add_readers(methods)
    state.layout = Layout(tuple(builder.paths), tuple(builder.holders), tuple(builder.patches))
    return AdapterSet(builder.containers)


class _Builder:
    """Containers that are being built, and where they go."""

    def __init__(self, root: nn.Module, anatomy: BackboneAnatomy, config: AIMConfig, *, on_meta: bool) -> None:
        self.root, self.anatomy, self.config, self.on_meta = root, anatomy, config, on_meta
        running = container_of(root)
        self.running = running if isinstance(running, RootState) else None
        # The image model's own dtype may have been changed since.
        present = declared_tensors(root).values() if self.running is not None else ()
        self.running_dtype = next((tensor.dtype for tensor in present), None)
        self.containers: list[AIMState] = []
        self.paths: list[str] = []
        self.holders: list[str] = []
        self.patches: list[Patch] = []

    def add(self, path: str, container: AIMState, mixin: type[Patched], spec: Hashable) -> None:
        self.containers.append(container)
        self.paths.append(path)
        self.patches.append(Patch(path, mixin, spec))

    def hold(self, path: str, mixin: type[Patched], spec: Hashable) -> None:
        self.holders.append(path)
        self.patches.append(Patch(path, mixin, spec))

    def place_of(self, module: nn.Module) -> _Place:
        place = place_of(module)
        place["dtype"] = self.running_dtype or place["dtype"]
        return {**place, "device": torch.device("meta")} if self.on_meta else place

    def copy_of(self, path: str, *, instead: str) -> nn.Module:
        self.require_trainable(path, instead=instead)
        copied = _trainable_copy(_own(self.root, path))
        if self.running is None:
            return copied
        # As in `place_of`; promoted, as norms are often kept in float32 around low-precision adapters.
        own, running = place_of(copied)["dtype"], self.place_of(copied)["dtype"]
        return copied.to(torch.promote_types(own, running))

    def require_trainable(self, path: str, *, instead: str) -> None:
        """Refuse a layer whose copy would not learn, such as a quantized one."""
        module = _own(self.root, path)
        parameters = {name: p for name, p in module.named_parameters() if not name.startswith("aim.")}
        fixed = [f"{name}, a {type(p).__name__} of {p.dtype}" for name, p in parameters.items() if not can_train(p)]
        if not parameters:
            fixed = [f"{name}, no parameter" for name in module.state_dict() if not name.startswith("aim.")]
        if fixed and not self.on_meta:  # else its values come from a file
            raise UnsupportedModelError(
                f"{path!r} is a {type(module).__name__} whose copy could not train (its {fixed[0]}), as quantized "
                f"layers have no gradients; pass {instead}"
            )

    def add_block(self, index: int, state: RootState, *, adapted: tuple[int, ...], convolved: tuple[int, ...]) -> None:
        path, block_anatomy = self.anatomy.blocks[index]
        block, dim, config = self.root.get_submodule(path), self.anatomy.block_widths[index], self.config
        place = self.place_of(block)
        names = [*config.components, *["temporal_input"] * config.temporal_input_adapter] if index in adapted else []
        if not (block_anatomy.temporal and config.attends_over_frames):
            names = [name for name in names if not name.startswith("temporal")]
        adapters: dict[str, nn.Module] = {
            name: Adapter(
                dim,
                config.adapter_width(dim),
                skip=name in ("spatial", "temporal_input"),
                linear=config.adapter_activation == "none",
                **place,
            )
            for name in names
        }
        if index in convolved:
            adapters["temporal_conv"] = TemporalConv(dim, config.adapter_width(dim), kernel=config.conv_kernel, **place)
        bias = None
        if "temporal" in names and self.anatomy.entry is None:
            heads = block_anatomy.heads(getattr(block, block_anatomy.attention))
            bias = new_temporal_bias(config.attention_frames, heads, **place)
        container = BlockState(
            f"blocks.{index}.",
            adapters,
            root=state,
            temporal_bias=bias,
            drop_path=config.block_drop_path(index, len(self.anatomy.blocks)),
            # Below the first adapted block nothing attends over frames, so time enters there and not at the tokens'
            # entry: what is frozen below it records no graph, and its outputs can be computed once per clip.
            enters=index != 0 and index == min(adapted, default=0),
            last=index == len(self.anatomy.blocks) - 1,
        )
        self.add(path, container, AdaptedBlock, block_anatomy)

    def add_readers(self, methods: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
        patched = {patch.path for patch in self.patches}
        anatomy = self.anatomy
        for path in inner_readers([anatomy.patch_conv, anatomy.entry, *(path for path, _ in anatomy.blocks)]):
            if path not in patched and not isinstance(self.root.get_submodule(path), (nn.ModuleList, nn.Sequential)):
                self.patches.append(Patch(path, ImageReader, methods))

    def add_heads(self, state: RootState) -> None:
        anatomy, config = self.anatomy, self.config
        for head in anatomy.heads:
            copied = config.num_classes is None and _has_classifier(head, self.root)
            if copied:
                state.add_module(head.name, self.copy_of(head.path, instead=_NEW_CLASSIFIER))
            elif config.num_classes is None and head.classifier:
                self.require_trainable(head.path, instead=_NEW_CLASSIFIER)
            self.hold(head.path, ClipHead, (head.name, config.num_classes is None and not copied))
        if config.num_classes:
            place = self.place_of(self.root.get_submodule(anatomy.blocks[-1][0]))
            for name in [head.name for head in anatomy.heads] or ["head"]:
                state.add_module(name, new_classifier(anatomy.output_width, config.num_classes, **place))


def place_of(module: nn.Module) -> _Place:
    """Return device and dtype for new layers beside ``module``: those of its first matrix.

    Norms are often kept in float32 around low-precision weights, so they do not decide.

    Raises:
        UnsupportedModelError: There is no floating-point parameter.
    """
    weights = [p for p in module.parameters() if p.is_floating_point()]
    if not weights:
        raise UnsupportedModelError(f"{type(module).__name__} has no floating-point parameters to adapt")
    chosen = next((p for p in weights if p.ndim >= 2), weights[0])
    return {"device": chosen.device, "dtype": chosen.dtype}


def require_place_for_head(anatomy: BackboneAnatomy, config: AIMConfig, *, owner: str) -> None:
    """Refuse a new classification layer where the image model has no place for one.

    Args:
        anatomy: Its anatomy.
        config: The settings.
        owner: Class of the model, for messages.

    Raises:
        ConfigError: There is none.
    """
    if anatomy.whole_model and config.num_classes is not None:
        raise ConfigError(
            f"num_classes={config.num_classes} would replace the image features that this {owner} compares with text; "
            f"wrap model.{anatomy.root} for a classifier, or leave num_classes=None"
        )
    if anatomy.pooled_outputs and not anatomy.heads and config.num_classes:
        raise ConfigError(
            f"num_classes={config.num_classes}: {owner} returns hidden states and has no place for a classification "
            "layer; load the same weights as its ...ForImageClassification class, or wrap it with num_classes=None and "
            "put a layer of your own behind pooler_output, which adapter_param_groups(..., others=True) trains"
        )


def _is_product(module: nn.Module) -> bool:
    """Return whether a module is a convolution over patches that do not overlap."""
    if isinstance(module, PatchProduct):
        return True
    if type(module) is not nn.Conv2d or module.padding not in ((0, 0), "valid"):
        return False
    return module.stride == module.kernel_size and module.dilation == (1, 1) and module.groups == 1


def _trainable_copy(module: nn.Module) -> nn.Module:
    """Copy a norm or head of the image model, without what is ours there already.

    Its hooks stay with the original, which is still called.
    """
    ours = [module._modules.get("aim"), *getattr(module, "aim_shared", ())]
    copied: nn.Module = copy.deepcopy(module, {id(each): None for each in ours if each is not None})
    if isinstance(copied, Patched):
        unpatch(copied)
    copied._modules.pop("aim", None)
    copied.__dict__.pop("aim_shared", None)
    for name in [name for name in vars(copied) if name.endswith("_hooks")]:
        getattr(copied, name).clear()
    return copied.requires_grad_(True)


def _has_classifier(head: HeadAnatomy, root: nn.Module) -> bool:
    """Return whether there is a classification layer at this head to make a trained copy of."""
    return head.classifier and isinstance(_own(root, head.path), nn.Linear)


def _own(root: nn.Module, path: str) -> nn.Module:
    """Return the image model's norm or head at a path, inside of what was put around it since it was wrapped."""
    module = root.get_submodule(path)
    return next((part for part in module.modules() if isinstance(part, Patched)), inside(module))


def _bypassed(root: nn.Module, anatomy: BackboneAnatomy, config: AIMConfig) -> frozenset[str]:
    paths = [anatomy.norm] if config.train_norm and anatomy.norm is not None else []
    names: list[str] = []
    for head in anatomy.heads:
        if config.num_classes is not None or _has_classifier(head, root):
            paths.append(head.path)
    if config.num_classes is not None:
        names += [name for name in anatomy.hidden_when_headed if root._parameters.get(name) is not None]
    for path in paths:
        own = [name for name, _ in root.get_submodule(path).named_parameters() if not name.startswith("aim.")]
        names += [f"{path}.{name}" for name in own]
    return frozenset(names)
