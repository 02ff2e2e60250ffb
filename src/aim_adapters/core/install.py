"""Put an adapter into an image model, and take it out again.

Where its parts go is kept as paths, so that several adapters can take turns on one image model, and copies and pickles
of the model carry them all.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from aim_adapters.core.build import place_of
from aim_adapters.core.foreign import inside
from aim_adapters.core.patching import Patched, patch, unpatch
from aim_adapters.core.state import AdapterSet, AIMState, BlockState, RootState, container_of
from aim_adapters.errors import StateError
from aim_adapters.layers import is_temporal


def install_adapter(root: nn.Module, adapter: AdapterSet) -> None:
    """Put an adapter into an image model that runs none; undo everything if that fails half-way.

    Args:
        root: The image model.
        adapter: What `build_adapter` or `withdraw_adapter` returned; its containers move into the model.
    """
    state = adapter.state
    done = False
    try:
        for path, container in zip(state.layout.containers, adapter.parts(), strict=True):
            _owner(root, path).add_module("aim", container)
        for path in state.layout.holders:
            _owner(root, path).aim_shared = (state,)  # type: ignore[assignment]
        for each in state.layout.patches:
            patch(_owner(root, each.path), each.mixin, each.spec)
        relabel, num_classes = state.anatomy.relabel, state.config.num_classes
        if relabel is not None and num_classes:
            state.labels = relabel(root, state.own_labels or state.clip.get("labels") or num_classes)
        for key, tensor in adapter.declared().items():
            if isinstance(tensor, nn.Parameter):
                tensor.requires_grad_(state.trains is None or key in state.trains)
        root.train(root.training)
        done = True
    finally:
        if not done:
            remove(root)
            adapter.requires_grad_(False)  # it rests on, and `state.trains` remembers what of it trains


def fill_adapter(root: nn.Module, adapter: AdapterSet, tensors: Mapping[str, Tensor]) -> None:
    """Fill a new adapter with values, by assignment: no tensor is copied that has the right dtype and device.

    Args:
        root: The image model it was built for.
        adapter: What `build_adapter` returned.
        tensors: Values by key, all of them if it was built on the meta device; their memory becomes the adapter's.
    """
    state = adapter.state
    paths = [path for path, _ in state.anatomy.blocks]
    for path, container in zip(state.layout.containers, adapter.parts(), strict=True):
        local = {}
        for key, target in container.declared().items():
            if key in tensors:
                first = min(state.config.adapted_blocks(len(paths))) if is_temporal(key) else -1
                beside = path if isinstance(container, BlockState) else paths[first]
                device = place_of(root.get_submodule(beside))["device"] if target.is_meta else target.device
                local[key.removeprefix(container.key)] = tensors[key].to(device, target.dtype)
        container.load_state_dict(local, strict=False, assign=True)


def withdraw_adapter(root: nn.Module) -> AdapterSet:
    """Take out the adapter that runs, whole, and leave the image model; `take_shelf` before it, or idle ones go too.

    Its parameters rest frozen, so that trainers and DDP find only what runs; which of them train is remembered.

    Args:
        root: A wrapped root.

    Raises:
        StateError: Another tool has wrapped a container, and the model is as it was.
    """
    state = container_of(root)
    assert isinstance(state, RootState)
    containers = []
    for path in state.layout.containers:
        container = _owner(root, path)._modules.get("aim")
        if not isinstance(container, AIMState):
            raise StateError(
                f"{path + '.aim'!r} is a {type(container).__name__}, so the adapter cannot be taken out; checkpoint or "
                "compile blocks or the whole model, not what is inside of them"
            )
        containers.append(container)
    remove(root)
    adapter = AdapterSet(containers).train(state.training)
    adapter.rest()
    return adapter


def remove(model: nn.Module) -> None:
    """Take out everything of ours."""
    for root, state in [(module, container_of(module)) for module in model.modules()]:
        if not isinstance(state, RootState):
            continue
        relabel = state.anatomy.relabel
        if relabel is not None and state.labels is not None:
            state.own_labels, state.labels = relabel(root, state.labels), None
    for module in list(model.modules()):
        if isinstance(module, Patched):
            unpatch(module)
        if container_of(module) is not None:
            del module._modules["aim"]
        module.__dict__.pop("aim_shared", None)


def _owner(root: nn.Module, path: str) -> nn.Module:
    """Return the image model's own module at a path, inside what other tools have put around it."""
    return inside(root.get_submodule(path))
