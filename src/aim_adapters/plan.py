"""Build everything a wrap will add, put it into an image model, and take it out again.

An adapter is built whole before anything is changed. Where its parts go is kept as paths, so that several adapters
can take turns on one image model, and copies and pickles of the model carry them all.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from typing import TypedDict

import torch
from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy, HeadAnatomy
from aim_adapters.block import AdaptedBlock
from aim_adapters.config import AIMConfig
from aim_adapters.errors import ConfigError, StateError, UnsupportedModelError
from aim_adapters.layers.adapter import Adapter
from aim_adapters.layers.head import new_classifier
from aim_adapters.layers.state import IDLE, AdapterSet, AIMState, BlockState, NormState, declared_tensors
from aim_adapters.layers.temporal import is_temporal, new_temporal_bias, new_temporal_embedding
from aim_adapters.patching import Patched, patch, unpatch
from aim_adapters.root import ClipHead, Layout, PatchProduct, RootState, TokenEntry, TrainedNorm, VideoRoot, WrapRecord


class _Place(TypedDict):
    device: torch.device
    dtype: torch.dtype


def build_adapter(
    root: nn.Module,
    config: AIMConfig,
    *,
    record: WrapRecord,
    name: str,
    owner: nn.Module | None = None,
    on_meta: bool = False,
) -> AdapterSet:
    """Build everything that adapts an image model, changing nothing.

    Args:
        root: The image model, wrapped or not.
        config: The settings.
        record: What unwrapping has to put back, with the anatomy.
        name: Name of the adapter.
        owner: The larger model that holds ``root``, for messages.
        on_meta: Build new layers on the meta device, for tensors that come from a file.

    Raises:
        ConfigError: A setting does not fit the model.
        UnsupportedModelError: The model cannot be adapted exactly.
    """
    anatomy = record.anatomy
    _require_place_for_head(anatomy, config, owner=type(owner or root).__name__)
    adapted = config.adapted_blocks(len(anatomy.blocks)) if config.components else ()
    if len({id(root.get_submodule(path)) for path, _ in anatomy.blocks}) != len(anatomy.blocks):
        raise UnsupportedModelError("the model runs one block at several depths; shared blocks cannot be adapted")
    if "temporal" in config.components and not any(anatomy.blocks[i][1].temporal for i in adapted):
        raise ConfigError(
            f"none of the blocks {list(adapted)} attends over time in this model (of {anatomy.family}, only "
            f"{[i for i, (_, block) in enumerate(anatomy.blocks) if block.temporal]} do); choose others by layers, "
            "or leave 'temporal' out of components"
        )
    builder = _Builder(root, anatomy, config, on_meta=on_meta)
    embedding = None
    if "temporal" in config.components and anatomy.entry is not None:
        place = builder.place_of(root.get_submodule(anatomy.blocks[adapted[0]][0]))
        embedding = new_temporal_embedding(config.attention_frames, anatomy.block_widths[adapted[0]], **place)
        if adapted[0] == 0:
            builder.hold(anatomy.entry, TokenEntry, anatomy.entry_side)
    if anatomy.patch_conv is not None and _is_product(root.get_submodule(anatomy.patch_conv)):
        builder.hold(anatomy.patch_conv, PatchProduct, None)
    state = RootState(config, embedding, bypassed=_bypassed(root, anatomy, config))
    state.record, state.name = record, name
    if builder.running is not None:
        running = builder.running
        state.branches, state.memory, state.products = running.branches, running.memory, running.products
    builder.add("", state, VideoRoot, (anatomy.hidden_when_headed, anatomy.blocked_methods))
    for index in adapted:
        builder.add_block(index, state, first=adapted[0])
    builder.add_heads(state)
    if config.train_norm and anatomy.norm is not None:
        trained = builder.copy_of(anatomy.norm)
        builder.add(anatomy.norm, NormState(trained, shared=state), TrainedNorm, None)
    state.layout = Layout(tuple(builder.paths), tuple(builder.holders), tuple(builder.patches))
    return AdapterSet(builder.containers)


def install(root: nn.Module, adapter: AdapterSet) -> None:
    """Put an adapter into an image model that runs none; undo everything if that fails half-way.

    Args:
        root: The image model.
        adapter: What `build_adapter` or `withdraw` returned; its containers move into the model.
    """
    state = root_state(adapter)
    done = False
    try:
        for path, container in zip(state.layout.containers, adapter.containers, strict=True):
            _part(root, path).add_module("aim", container)
        for path in state.layout.holders:
            _part(root, path).aim_shared = (state,)  # type: ignore[assignment]
        for path, mixin, spec in state.layout.patches:
            patch(_part(root, path), mixin, spec)
        relabel, num_classes = state.record.anatomy.relabel, state.config.num_classes
        if relabel is not None and num_classes:
            state.labels = relabel(root, state.own_labels or num_classes)
        for key, tensor in adapter.declared().items():
            if isinstance(tensor, nn.Parameter):
                tensor.requires_grad_(state.trains is None or key in state.trains)
        root.train(root.training)
        done = True
    finally:
        if not done:
            remove(root)


def fill_adapter(root: nn.Module, adapter: AdapterSet, tensors: Mapping[str, Tensor]) -> None:
    """Give a new adapter its values, by assignment: no tensor is copied that has the right dtype and device.

    Args:
        root: The image model it was built for.
        adapter: What `build_adapter` returned.
        tensors: Values by key, all of them if it was built on the meta device; their memory becomes the adapter's.
    """
    state = root_state(adapter)
    paths = [path for path, _ in state.record.anatomy.blocks]
    for path, container in zip(state.layout.containers, adapter.containers, strict=True):
        assert isinstance(container, AIMState)
        local = {}
        for key, target in container.declared().items():
            if key in tensors:
                first = min(state.config.adapted_blocks(len(paths))) if is_temporal(key) else -1
                beside = path if isinstance(container, BlockState) else paths[first]
                device = place_of(root.get_submodule(beside))["device"] if target.is_meta else target.device
                local[key.removeprefix(container.key)] = tensors[key].to(device, target.dtype)
        container.load_state_dict(local, strict=False, assign=True)


def withdraw(root: nn.Module) -> AdapterSet:
    """Take out the adapter that runs, whole, and leave the image model; idle ones are dropped from it.

    Its parameters rest frozen, so that trainers and DDP find only what runs; which of them train is remembered.

    Args:
        root: A wrapped root.

    Raises:
        StateError: Another tool has wrapped a container, and the model is as it was.
    """
    state = root._modules["aim"]
    assert isinstance(state, RootState)
    containers = []
    for path in state.layout.containers:
        container = _part(root, path)._modules.get("aim")
        if not isinstance(container, AIMState):
            raise StateError(
                f"{path + '.aim'!r} is a {type(container).__name__}, so the adapter cannot be taken out; checkpoint or "
                "compile blocks or the whole model, not what is inside of them"
            )
        containers.append(container)
    remove(root)
    state._modules.pop(IDLE, None)
    adapter = AdapterSet(containers).train(state.training)
    rest(adapter)
    return adapter


def rest(adapter: AdapterSet) -> None:
    """Freeze an adapter that stops running, or is new and does not run yet; remember what of it trains."""
    tensors = adapter.declared()
    root_state(adapter).trains = frozenset(key for key, tensor in tensors.items() if tensor.requires_grad)
    adapter.requires_grad_(False)


def root_state(adapter: AdapterSet) -> RootState:
    """Return the container of the root, which knows name, settings and layout of an adapter."""
    state = adapter.containers[0]
    assert isinstance(state, RootState)
    return state


def remove(model: nn.Module) -> None:
    """Take out everything of ours."""
    for root, shared in [(m, m._modules["aim"]) for m in model.modules() if "aim" in m._modules]:
        if not isinstance(shared, RootState):
            continue
        relabel = shared.record.anatomy.relabel
        if relabel is not None and shared.labels is not None:
            shared.own_labels, shared.labels = relabel(root, shared.labels), None
    for module in list(model.modules()):
        if isinstance(module, Patched):
            unpatch(module)
        if isinstance(module._modules.get("aim"), AIMState):
            del module._modules["aim"]
        module.__dict__.pop("aim_shared", None)


class _Builder:
    """Collect containers and where they go."""

    def __init__(self, root: nn.Module, anatomy: BackboneAnatomy, config: AIMConfig, *, on_meta: bool) -> None:
        self.root, self.anatomy, self.config, self.on_meta = root, anatomy, config, on_meta
        running = root._modules.get("aim")
        self.running = running if isinstance(running, RootState) else None
        self.containers: list[AIMState] = []
        self.paths: list[str] = []
        self.holders: list[str] = []
        self.patches: list[tuple[str, type[Patched], Hashable]] = []

    def add(self, path: str, container: AIMState, mixin: type[Patched], spec: Hashable) -> None:
        self.containers.append(container)
        self.paths.append(path)
        self.patches.append((path, mixin, spec))

    def hold(self, path: str, mixin: type[Patched], spec: Hashable) -> None:
        self.holders.append(path)
        self.patches.append((path, mixin, spec))

    def place_of(self, module: nn.Module) -> _Place:
        place = place_of(module)
        if self.running is not None:  # the image model's own dtype may have been changed since
            place["dtype"] = next((t.dtype for t in declared_tensors(self.root).values()), place["dtype"])
        return {**place, "device": torch.device("meta")} if self.on_meta else place

    def copy_of(self, path: str) -> nn.Module:
        copied = _trainable_copy(self.root.get_submodule(path))
        if self.running is None:
            return copied
        # As in `place_of`; promoted, as norms are often kept in float32 around low-precision adapters.
        own, running = place_of(copied)["dtype"], self.place_of(copied)["dtype"]
        return copied.to(torch.promote_types(own, running))

    def add_block(self, index: int, state: RootState, *, first: int) -> None:
        path, block_anatomy = self.anatomy.blocks[index]
        block, dim, config = self.root.get_submodule(path), self.anatomy.block_widths[index], self.config
        place = self.place_of(block)
        names = list(config.components) + ["temporal_input"] * config.temporal_input_adapter
        if not block_anatomy.temporal:
            names = [name for name in names if not name.startswith("temporal")]
        adapters = {
            name: Adapter(dim, config.adapter_width(dim), skip=name in ("spatial", "temporal_input"), **place)
            for name in names
        }
        bias = None
        if "temporal" in names and self.anatomy.entry is None:
            heads = block_anatomy.heads(getattr(block, block_anatomy.attention))
            bias = new_temporal_bias(config.attention_frames, heads, **place)
        container = BlockState(
            f"blocks.{index}.",
            adapters,
            shared=state,
            temporal_bias=bias,
            drop_path=config.drop_path * index / max(len(self.anatomy.blocks) - 1, 1),
            # Below the first adapted block there is nothing of ours, so time enters there and not at the tokens'
            # entry: the frozen part records no graph, and its outputs can be computed once per clip.
            enters=index == first != 0,
            last=index == len(self.anatomy.blocks) - 1,
        )
        self.add(path, container, AdaptedBlock, block_anatomy)

    def add_heads(self, state: RootState) -> None:
        anatomy, config = self.anatomy, self.config
        for head in anatomy.heads:
            copied = config.num_classes is None and _has_classifier(head, self.root)
            if copied:
                state.add_module(head.name, self.copy_of(head.path))
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


def _require_place_for_head(anatomy: BackboneAnatomy, config: AIMConfig, *, owner: str) -> None:
    if anatomy.whole_model and config.num_classes is not None:
        raise ConfigError(
            f"num_classes={config.num_classes} would replace the image features that this {owner} compares with text; "
            f"wrap model.{anatomy.root} for a classifier, or leave num_classes=None"
        )
    if anatomy.pooled_outputs and not anatomy.heads and config.num_classes:
        raise ConfigError(
            f"num_classes={config.num_classes}: {owner} returns hidden states and has no place for a classification "
            "layer; load the same weights as its ...ForImageClassification class, or wrap it with num_classes=None and "
            "put a layer of your own behind pooler_output"
        )


def _is_product(module: nn.Module) -> bool:
    """Tell whether a module is a convolution over patches that do not overlap."""
    if isinstance(module, PatchProduct):
        return True
    if type(module) is not nn.Conv2d or module.padding not in ((0, 0), "valid"):
        return False
    return module.stride == module.kernel_size and module.dilation == (1, 1) and module.groups == 1


def _part(root: nn.Module, path: str) -> nn.Module:
    """Return the module at a path, inside what activation checkpointing or compiling put around it."""
    module = root.get_submodule(path)
    while (inner := module._modules.get("_checkpoint_wrapped_module", module._modules.get("_orig_mod"))) is not None:
        module = inner
    return module


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
        own = [name for name, _ in root.get_submodule(path).named_parameters() if not name.startswith("aim.")]
        names += [f"{path}.{name}" for name in own]
    return frozenset(names)
