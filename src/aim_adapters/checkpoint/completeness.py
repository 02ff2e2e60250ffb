"""What would not load again is not saved: an adapter whose tensors are not those of its settings, or a changed base."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aim_adapters.anatomy import fingerprint
from aim_adapters.checkpoint.state_dict import named_keys
from aim_adapters.core import (
    DISTRIBUTED_CLASSES,
    FoundAdapter,
    WrappedModel,
    build_adapter,
    find_changes,
    is_merged,
    is_sharded,
)
from aim_adapters.errors import CheckpointError
from aim_adapters.layers import is_temporal

# What a part of a tensor's name shows, and how to undo it.
_FOREIGN = {
    r"parametrizations\.(\w+)": "is parametrized: call torch.nn.utils.parametrize.remove_parametrizations(layer, {!r})",
    r"(\w*weight)_g": "is weight-normalized: call torch.nn.utils.remove_weight_norm(layer, {!r})",
    r"(\w+)_orig": "is pruned: call torch.nn.utils.prune.remove(layer, {!r})",
    "lora_A": "has LoRA: merge it and put the layer back (peft: merge_and_unload)",
    "base_layer": "has LoRA: merge it and put the layer back (peft: merge_and_unload)",
    "_packed_params": "is quantized: save before you quantize, or quantize the image model alone",
}


def require_complete(wrapped: WrappedModel, adapter: FoundAdapter) -> None:
    """Refuse to save an adapter that would not load into a fresh base model, or would compute something else there.

    Args:
        wrapped: A wrapped model. If it is sharded, every rank must call.
        adapter: One of its adapters.

    Raises:
        CheckpointError: The adapter's tensors are not those that its settings ask for, or cannot be written; or the
            image model was changed after it was wrapped.
    """
    state = adapter.state
    if is_merged(wrapped.root):
        raise CheckpointError(
            "adapters were merged into the weights of this image model, and what is left would compute something else "
            "in a fresh one, so it was not saved. Save adapters before merge_adapters, and merge again after loading; "
            "or keep model.state_dict()"
        )
    for key, tensor in adapter.tensors.items():
        _require_dense(key, tensor)
    expected, present = _expected(wrapped, adapter), adapter.tensors
    missing, extra = (
        [key for key in one if key not in other] for one, other in ((expected, present), (present, expected))
    )
    shapes = [key for key in expected if key in present and expected[key].shape != present[key].shape]
    problems = [named_keys("missing", missing), named_keys("not of its settings", extra)]
    problems.append(
        named_keys("of another shape", [f"{k} ({[*present[k].shape]} for {[*expected[k].shape]})" for k in shapes])
    )
    if missing or extra or shapes:
        raise CheckpointError(
            f"the adapter {state.name!r} could not be loaded again, so it was not saved: "
            f"{'; '.join(filter(None, problems))}. {_cure(extra, missing + shapes)}"
        )
    _require_same_base(wrapped, adapter)


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse to save what training has left behind when it diverged.

    Args:
        tensors: The adapter's tensors, gathered.

    Raises:
        CheckpointError: A tensor holds NaN or infinities.
    """
    for key, tensor in tensors.items():
        # As when loading: a finite sum has finite terms, and only another one may have.
        if not math.isfinite(float(tensor.sum(dtype=torch.float32))) and not tensor.isfinite().all():
            raise CheckpointError(
                f"{key!r} holds NaN or infinities, so nothing was saved: training has diverged. Pass "
                "allow_nonfinite=True to save it all the same"
            )


def _require_dense(key: str, tensor: Any) -> None:
    plain = isinstance(tensor, Tensor) and (type(tensor) in (Tensor, nn.Parameter) or is_sharded(tensor))
    if plain and tensor.is_floating_point() and tensor.layout == torch.strided:
        return
    got = type(tensor).__name__
    if plain:
        got = f"tensor of {tensor.dtype}" if tensor.layout == torch.strided else f"tensor of layout {tensor.layout}"
    _, cure = _foreign(key) or ("", _FOREIGN["_packed_params"])
    raise CheckpointError(
        f"{key!r} is a {got}, expected a dense floating-point tensor, so nothing was saved: the layer {cure}"
    )


def _expected(wrapped: WrappedModel, adapter: FoundAdapter) -> dict[str, Tensor]:
    """Return what loading would fill: the tensors of the adapter's settings, on the meta device where they are new."""
    root, (state, tensors) = wrapped.root, adapter
    config, copied, anatomy = state.config, {}, state.anatomy
    paths = [*(head.path for head in anatomy.heads), *([anatomy.norm] if anatomy.norm else [])]
    if any(_is_distributed(root.get_submodule(path)) for path in paths):  # cannot be copied
        config = dataclasses.replace(config, train_norm=False, num_classes=None if anatomy.whole_model else 0)
        copied = {key: tensor for key, tensor in tensors.items() if not (key.startswith("blocks.") or is_temporal(key))}
    with torch.random.fork_rng(devices=[]):  # saving in the midst of training does not change its numbers
        built = build_adapter(root, config, record=state.record, name=state.name, on_meta=True)
    return {**built.declared(), **copied}


def _foreign(key: str) -> tuple[str, str] | None:
    """Return the layer that another tool has changed, as a tensor's name shows, and how to undo it."""
    for part, cure in _FOREIGN.items():
        if found := re.search(rf"\.{part}(?=\.|$)", key):
            return key[: found.start()], cure.format(*found.groups())
    return None


def _cure(extra: Iterable[str], others: list[str]) -> str:
    """Return what most likely happened to an adapter, and what to do about it."""
    for layer, cure in filter(None, map(_foreign, extra)):
        return f"The layer {layer!r} {cure}"
    if any(key.startswith("head") for key in others):
        return "The classification layer was replaced: unwrap the model and wrap it with num_classes=K"
    if any(map(is_temporal, (key.partition(" ")[0] for key in others))):
        return "Change the number of frames with set_num_frames(model, num_frames)"
    return (
        "A layer of an adapter was replaced or removed, or another tool was put around it: undo that, or unwrap the "
        "model and wrap it anew"
    )


def _require_same_base(wrapped: WrappedModel, adapter: FoundAdapter) -> None:
    root, state = wrapped.root, adapter.state
    record = state.record
    changed = [name for name in find_changes(record.samples, root) if name not in state.bypassed]
    names = named_keys("changed or gone", changed)
    if not changed and record.fingerprint and fingerprint(root, state.anatomy) != record.fingerprint:
        names = "sizes of its attention or MLP differ"
    if names:
        raise CheckpointError(
            f"the image model is not what it was when it was wrapped ({names}), and the adapters would compute "
            "something else in a fresh one, so they were not saved. Take LoRA and the like out of it, or merge them "
            "before you wrap; keep its weights frozen, or keep model.state_dict() instead. If it holds another "
            "checkpoint on purpose, model.load_state_dict(model.state_dict()) makes that its base"
        )


def _is_distributed(module: nn.Module) -> bool:
    return any(cls.__name__ in DISTRIBUTED_CLASSES for cls in type(module).__mro__)
