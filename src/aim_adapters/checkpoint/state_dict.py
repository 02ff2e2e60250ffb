"""The tensors of an adapter, under names that depend on neither library nor wrapper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aim_adapters.arguments import require_flags, shown
from aim_adapters.core import is_sharded, only_root, require_memory
from aim_adapters.errors import CheckpointError


class LoadReport(NamedTuple):
    """The keys that did not load.

    Attributes:
        missing: Keys of the model that the checkpoint does not have.
        unexpected: Keys of the checkpoint that the model does not have.
        mismatched: Keys whose tensors have different shapes.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]


def adapter_state_dict(model: nn.Module, *, name: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of an adapter, under keys that depend on neither library nor wrapper.

    Args:
        model: A wrapped model, itself possibly wrapped by DDP, FSDP2 (every rank must call: shards are gathered),
            ``torch.compile``, activation checkpointing or a moving average.
        name: Name of the adapter; by default the one that runs.

    Returns:
        Tensors by key, such as ``blocks.{i}.temporal.down_proj.weight``, ``temporal_embedding``, ``norm.*`` and
        ``head.*``. They are detached, and share memory with the model unless it is sharded.

    Raises:
        TypeError: ``model`` is not a module.
        ConfigError: There is no adapter of this name.
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    return gather(only_root(model).find(name).tensors)


def load_adapter_state_dict(
    model: nn.Module, state: Mapping[str, Tensor], strict: bool = True, *, name: str | None = None
) -> LoadReport:
    """Copy tensors into an adapter; if ``strict``, all of them or none.

    Args:
        model: A wrapped model.
        state: Tensors under the keys of `adapter_state_dict`; cast to the model's dtype and device.
        strict: Refuse missing and unexpected tensors and wrong shapes; otherwise load what fits and report the rest.
        name: Name of the adapter; by default the one that runs.

    Returns:
        The keys that did not load; none if ``strict``.

    Raises:
        TypeError: ``model`` is not a module.
        CheckpointError: ``strict``, and a tensor does not fit; or an entry is not a dense floating-point tensor. The
            model is unchanged.
        ConfigError: There is no adapter of this name, or ``strict`` is not a flag.
        StateError: The model is not wrapped, holds several wrapped models, or is on the meta device.
    """
    require_flags(strict=strict)
    targets = only_root(model).find(name).tensors
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"state must map names to tensors, got {shown(state)}; nothing was loaded")
    for key in state:
        tensor, where = state[key], f"state: {shown(key)}"
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise CheckpointError(f"{where} must be a floating-point tensor, got {got}; nothing was loaded")
        if tensor.is_meta or tensor.layout != torch.strided:
            place = f"{tensor.layout} on {tensor.device}"
            raise CheckpointError(f"{where} must be a dense tensor with values, got {place}; nothing was loaded")
    report = compare(targets, {key: tuple(tensor.shape) for key, tensor in state.items()}, strict=strict)
    copy_tensors(targets, {key: state[key] for key in fitting(targets, report)})
    return report


def compare(targets: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], *, strict: bool) -> LoadReport:
    """Compare the tensors of a checkpoint with those of an adapter.

    Args:
        targets: The adapter's tensors.
        shapes: Shapes of the checkpoint's tensors.
        strict: Refuse any difference.

    Returns:
        The keys that cannot be loaded.

    Raises:
        CheckpointError: ``strict``, and there is a difference.
    """
    report = LoadReport(
        missing=tuple(key for key in targets if key not in shapes),
        unexpected=tuple(key for key in shapes if key not in targets),
        mismatched=tuple(key for key in targets if key in shapes and shapes[key] != tuple(targets[key].shape)),
    )
    if strict and any(report):
        problems = (
            named_keys("missing", report.missing),
            named_keys("unexpected", report.unexpected),
            named_keys(
                "of another shape",
                [f"{key} ({list(shapes[key])} for {list(targets[key].shape)})" for key in report.mismatched],
            ),
        )
        raise CheckpointError(
            f"the checkpoint does not fit the model, nothing was loaded: {'; '.join(filter(None, problems))}. "
            "Wrap the model with the checkpoint's own settings, or pass strict=False to load what fits"
        )
    return report


def fitting(targets: Mapping[str, Tensor], report: LoadReport) -> list[str]:
    """Return the keys of an adapter that a checkpoint has in the same shape.

    Args:
        targets: The adapter's tensors.
        report: Result of `compare`.
    """
    return [key for key in targets if key not in report.missing and key not in report.mismatched]


def copy_tensors(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into an adapter in place: optimizers, CUDA graphs and views keep referring to the same tensors.

    Args:
        targets: The adapter's tensors.
        values: Values for some of them, of the same shapes; cast to their dtype and device.

    Raises:
        StateError: The adapter is on the meta device.
    """
    require_memory(targets.values())
    with torch.no_grad():
        for key, source in values.items():
            target = targets[key]
            if is_sharded(target):
                from torch.distributed.tensor import DTensor, distribute_tensor

                assert isinstance(target, DTensor)
                source = source.to(target.device, target.dtype)
                source = distribute_tensor(source, target.device_mesh, target.placements)
            target.copy_(source)


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors detached, and gathered where they are sharded, for which every rank must call.

    Args:
        tensors: Tensors by key.
    """
    detached = {key: tensor.detach() for key, tensor in tensors.items()}
    return {
        key: tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
        for key, tensor in detached.items()
    }


def named_keys(what: str, keys: Sequence[str], most: int = 5) -> str:
    """Return how many keys are ``what``, and the first of them; nothing if there are none."""
    if not keys:
        return ""
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f"{len(keys)} {what}: {', '.join(key[:200] for key in keys[:most])}{more}"
