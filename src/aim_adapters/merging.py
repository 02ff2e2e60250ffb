"""Linear adapters merged into the weights of the image model, so that inference pays nothing for them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TypeVar

import torch
from torch import Tensor, nn

from aim_adapters.core import (
    AdaptedBlock,
    VideoRoot,
    WrappedModel,
    listed,
    mark_merged,
    only_root,
    read_adapter,
    require_local,
    require_memory,
    require_parts,
)
from aim_adapters.errors import StateError, UnsupportedModelError
from aim_adapters.layers import folded_bias, folded_weight
from aim_adapters.ops.branches import AdapterTensors

ModelT = TypeVar("ModelT", bound=nn.Module)

_REASONS = {
    "temporal": "what sees time is no part of an image model",
    "joint": "the joint adapter stands beside the MLP, which is not linear",
}


def merge_adapters(model: ModelT) -> ModelT:
    """Merge linear spatial adapters into the weights of the image model, in place: the same outputs at no cost.

    A spatial adapter reads what the output projection of attention gives, after LayerScale: ``o = g * (W a + b)``. If
    it is linear (``adapter_activation="none"``), ``o + U (D o + d) + u`` is a linear layer of ``a`` again, which takes
    the place of W and b, with a g of 1. The copies of the final norm and of the classification layer are written into
    the image model's own, where it has them. Other components cannot be merged: `wrap_image_model` with
    ``components=("spatial",)`` trains a model that can.

    The model goes on to take videos, without adapters. What `unwrap_image_model` gives back and `disable_adapters` runs
    is the image model with the merged weights; a new classification layer (``num_classes=K``) is not part of it. There
    is no way back: save the adapters before. What is left is not saved by `save_adapters`, as the image model is
    another one now, nor are adapters loaded into it; ``model.state_dict()`` holds all of it.

    Args:
        model: A wrapped model with linear spatial adapters, or with no components.

    Returns:
        The same object.

    Raises:
        TypeError: ``model`` is not a module.
        StateError: It is not wrapped, holds several wrapped models or other adapters, has components that cannot be
            merged, is sharded, distributed or on the meta device, its adapters are disabled, parts were replaced, or
            merged weights would not be finite. The model is unchanged.
        UnsupportedModelError: An output projection cannot take in its adapter. The model is unchanged.
    """
    wrapped = only_root(model)
    root, state = wrapped.root, wrapped.state
    assert isinstance(root, VideoRoot)
    _require_mergeable(model, wrapped)
    blocks = [(name, block) for name, block in root.named_modules() if isinstance(block, AdaptedBlock)]
    parameters = dict(root.named_parameters())
    with torch.no_grad(), torch.autocast(next(root.parameters()).device.type, enabled=False):
        values = [change for name, block in blocks for change in _merged(name, block)]
        values += [(parameters[own], parameters[copied]) for copied, own in root.copied_names().items()]
        _require_separate(root, [target for target, _ in values])
        _require_finite(root, values)
        # From here on the model is changed.
        for target, value in values:
            target.copy_(value)
    for _, block in blocks:
        block.aim.spatial = None
    state.config = dataclasses.replace(state.config, components=())
    if values:
        mark_merged(root)
    return model


def _require_mergeable(model: nn.Module, wrapped: WrappedModel) -> None:
    root, state = wrapped.root, wrapped.state
    require_local(model, "merge_adapters", "merge first, then shard or distribute")
    require_memory(root.parameters())
    require_parts(root, state)
    if not state.enabled:
        raise StateError("merge_adapters: adapters are disabled; leave disable_adapters first")
    if idle := list(state.idle_adapters()):
        raise StateError(
            f"merge_adapters: the model holds other adapters, {', '.join(map(repr, idle))}, which would run on the "
            "merged weights; save them, and delete_adapter them first"
        )
    components = state.config.components
    reasons = [f"{name!r} ({_REASONS[name]})" for name in components if name in _REASONS]
    if "spatial" in components and state.config.adapter_activation != "none":
        reasons.append("'spatial' (with adapter_activation='gelu', so that it is not linear)")
    if reasons:
        raise StateError(
            f"merge_adapters: cannot merge {', '.join(reasons)}; wrap and train a model that can be merged with "
            "components=('spatial',) and adapter_activation='none'"
        )


def _merged(name: str, block: AdaptedBlock) -> list[tuple[Tensor, Tensor]]:
    """Return parameters of a block and the values that they get."""
    if block.aim.spatial is None:
        return []
    found = _read(block)
    if isinstance(found, str):
        raise UnsupportedModelError(
            f"merge_adapters: {name} cannot take in its adapter, and nothing was changed: {found}"
        )
    adapter, (weight, bias, gamma) = found
    values = [
        (weight, folded_weight(weight, adapter.down_weight, adapter.up_weight, gamma)),
        (bias, folded_bias(*adapter, bias, gamma)),
    ]
    return values if gamma is None else [*values, (gamma, torch.ones_like(gamma))]


def _read(block: AdaptedBlock) -> tuple[AdapterTensors, tuple[Tensor, Tensor, Tensor | None]] | str:
    """Return a block's spatial adapter, and its output projection with the factor behind it; or why it cannot."""
    adapter, spec = read_adapter(block.aim.spatial), block.aim_spec
    if spec.pre_attention is None:
        return "the norm of a post-norm block stands between its output projection and its adapter"
    parts = "this family's parts are not described" if spec.parts is None else spec.parts(block, spec).attention
    if isinstance(adapter, str) or isinstance(parts, str):
        return adapter if isinstance(adapter, str) else str(parts)
    assert adapter is not None
    if parts.out_bias is None:
        return "its output projection has no bias to take in that of the adapter"
    return adapter, (parts.out_weight, parts.out_bias, parts.gamma)


def _require_separate(root: nn.Module, targets: list[Tensor]) -> None:
    """Refuse parameters that other layers share, which would change with them."""
    named = list(root.named_parameters(remove_duplicate=False))
    count, changed = Counter(id(parameter) for _, parameter in named), {id(target) for target in targets}
    shared = [name for name, parameter in named if id(parameter) in changed and count[id(parameter)] > 1]
    if shared:
        raise UnsupportedModelError(
            f"merge_adapters: several layers share {listed(shared)}, which cannot take in the adapter of one of them; "
            "nothing was changed"
        )
    spread = [name for name, parameter in named if id(parameter) in changed and _is_expanded(parameter)]
    if spread:
        raise UnsupportedModelError(
            f"merge_adapters: elements of {listed(spread)} share memory (expand), so they cannot differ; nothing was "
            "changed; make them parameters of their own with clone() before wrapping"
        )


def _is_expanded(tensor: Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _require_finite(root: nn.Module, values: list[tuple[Tensor, Tensor]]) -> None:
    """Refuse values that would spoil the image model for good."""
    names = {id(parameter): name for name, parameter in root.named_parameters()}
    broken = [names[id(target)] for target, value in values if not bool(value.isfinite().all())]
    if broken:
        raise StateError(
            f"merge_adapters: NaN or infinities would be in {listed(broken)}, so nothing was changed: training has "
            f"diverged, or {values[0][0].dtype} of the image model cannot hold the merged weights"
        )
