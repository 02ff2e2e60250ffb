"""The tensors of an adapter under names that depend on neither library nor wrapper, and how they are copied in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aim_adapters.core import only_root, require_memory
from aim_adapters.errors import CheckpointError


class LoadReport(NamedTuple):
    """Keys that did not load: absent from the file, unknown to the model, of another shape."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]


def adapter_state_dict(model: nn.Module, *, name: str | None = None) -> dict[str, Tensor]:
    """Return what was trained, under keys that depend on neither library nor wrapper.

    Args:
        model: A wrapped model, itself possibly in DDP, FSDP2 (every rank must call: shards are gathered),
            ``torch.compile``, activation checkpointing or a moving average.
        name: Which adapter, of several; by default the one that runs.

    Returns:
        ``blocks.{i}.temporal.down_proj.weight``, ``temporal_embedding``, ``norm.*``, ``head.*``; detached, sharing
        memory with the model unless sharded.

    Raises:
        ConfigError: There is no adapter of this name.
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    return gather(only_root(model).find(name).tensors)


def load_adapter_state_dict(
    model: nn.Module, state: Mapping[str, Tensor], strict: bool = True, *, name: str | None = None
) -> LoadReport:
    """Copy tensors into a wrapped model, all or (when ``strict``) none.

    Args:
        model: A wrapped model.
        state: Tensors under the keys of `adapter_state_dict`; cast to the model's dtype and device.
        strict: Refuse missing, unexpected and misshapen tensors; otherwise load what fits and report the rest.
        name: Into which adapter, of several; by default the one that runs.

    Raises:
        CheckpointError: ``strict``, and something does not fit, or an entry is not a dense floating-point tensor; the
            model is unchanged.
        ConfigError: There is no adapter of this name.
        StateError: The model is not wrapped, holds several wrapped models, or is on the meta device.
    """
    targets = only_root(model).find(name).tensors
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"state must map names to tensors, got {state!r:.200}; nothing was loaded")
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise CheckpointError(f"{key!r} must be a floating-point tensor, got {found}; nothing was loaded")
        if tensor.is_meta or tensor.layout != torch.strided:
            place = f"{tensor.layout} on {tensor.device}"
            raise CheckpointError(f"{key!r} must be a dense tensor with values, got {place}; nothing was loaded")
    report = compare(targets, {key: tuple(tensor.shape) for key, tensor in state.items()}, strict=strict)
    copy_tensors(targets, {key: state[key] for key in fitting(targets, report)})
    return report


def compare(targets: Mapping[str, Tensor], found: Mapping[str, tuple[int, ...]], *, strict: bool) -> LoadReport:
    """Compare what a checkpoint holds with what an adapter takes.

    Args:
        targets: The adapter's tensors.
        found: Shapes in the checkpoint.
        strict: Refuse every difference.

    Raises:
        CheckpointError: ``strict``, and there is one.
    """
    report = LoadReport(
        missing=tuple(key for key in targets if key not in found),
        unexpected=tuple(key for key in found if key not in targets),
        mismatched=tuple(key for key in targets if key in found and found[key] != tuple(targets[key].shape)),
    )
    if strict and any(report):
        problems = (
            _named("missing", report.missing),
            _named("unexpected", report.unexpected),
            _named(
                "of another shape",
                [f"{key} ({list(found[key])} for {list(targets[key].shape)})" for key in report.mismatched],
            ),
        )
        raise CheckpointError(
            f"the checkpoint does not fit the model, nothing was loaded: {'; '.join(filter(None, problems))}. "
            "Wrap the model with the checkpoint's own settings, or pass strict=False to load what fits"
        )
    return report


def fitting(targets: Mapping[str, Tensor], report: LoadReport) -> list[str]:
    """Return the keys that load.

    Args:
        targets: The adapter's tensors.
        report: What `compare` found.
    """
    return [key for key in targets if key not in report.missing and key not in report.mismatched]


def copy_tensors(targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy values into an adapter in place, so that optimizers, graphs and views keep what they hold.

    Args:
        targets: The adapter's tensors.
        state: Values for some of them, of the same shapes.

    Raises:
        StateError: The adapter has no memory to copy into.
    """
    require_memory(targets.values())
    with torch.no_grad():
        for key, source in state.items():
            target = targets[key]
            if is_sharded(target):
                from torch.distributed.tensor import DTensor, distribute_tensor

                assert isinstance(target, DTensor)
                source = source.to(target.device, target.dtype)
                source = distribute_tensor(source, target.device_mesh, target.placements)
            target.copy_(source)


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors detached, and whole where they are sharded, for which every rank must call."""
    detached = {key: tensor.detach() for key, tensor in tensors.items()}
    return {
        key: tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
        for key, tensor in detached.items()
    }


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is spread over processes."""
    return hasattr(tensor, "full_tensor")


def _named(what: str, keys: Sequence[str], most: int = 5) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f"{len(keys)} {what}: {', '.join(key[:200] for key in keys[:most])}{more}"
