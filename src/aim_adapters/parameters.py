"""Name, count and group the parameters that train."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from aim_adapters.core import AIMState, FoundAdapter, WrappedModel, canonical_path, find_roots, states
from aim_adapters.errors import ConfigError
from aim_adapters.layers import is_temporal


class ParameterCount(NamedTuple):
    """Numbers of parameters that take part in the video model; what our copies bypass does not count."""

    trainable: int
    total: int


def declared_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return every parameter of the adapters that run, with its key in a checkpoint, of every wrapped model inside."""
    return [
        (key, tensor)
        for state in states(model)
        for key, tensor in state.declared().items()
        if isinstance(tensor, nn.Parameter)
    ]


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that train: adapters, temporal embedding, copies of norm and head or a new head.

    Args:
        model: A wrapped model, itself possibly wrapped by DDP, FSDP2 or ``torch.compile``.

    Raises:
        StateError: The model is not wrapped.
    """
    find_roots(model)
    return [parameter for _, parameter in declared_parameters(model) if parameter.requires_grad]


def adapter_param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer: weights decay; biases, norms and temporal positions do not.

    Args:
        model: A wrapped model.
        weight_decay: Decay of the first group, >= 0 (the paper: 0.05).

    Returns:
        One or two groups ``{"params": [...], "weight_decay": ...}``; frozen parameters are in none.

    Raises:
        StateError: The model is not wrapped.
        ConfigError: ``weight_decay`` is negative or not a number.
    """
    if isinstance(weight_decay, bool) or not isinstance(weight_decay, (int, float)) or not weight_decay >= 0:
        raise ConfigError(f"weight_decay must be a number >= 0, got {weight_decay!r}")
    find_roots(model)
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": float(weight_decay)},
        {"params": [], "weight_decay": 0.0},
    ]
    for key, parameter in declared_parameters(model):
        if parameter.requires_grad:
            no_decay = parameter.ndim <= 1 or is_temporal(key)
            groups[no_decay]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the active parameters of a wrapped model.

    Active: the image model's, except those in whose place our copies run, and ours. So the frozen norm and head
    that a trained copy replaces are not counted twice, as in the paper's tables, and of several adapters only the one
    that runs counts.

    Args:
        model: A wrapped model.

    Raises:
        StateError: The model is not wrapped.
    """
    bypassed = [f"{found.path}.{name}" for found in find_roots(model) for name in found.state.bypassed]
    ours = [parameter for _, parameter in declared_parameters(model)]
    trainable = sum(parameter.numel() for parameter in ours if parameter.requires_grad)
    return ParameterCount(trainable, sum(map(Tensor.numel, ours)) + _count_base(model, bypassed))


def count_adapter(model: nn.Module, wrapped: WrappedModel, adapter: FoundAdapter) -> ParameterCount:
    """Count the parameters that are active when one adapter runs, whether it does or not, as if all of it trained.

    Args:
        model: A wrapped model with one root.
        wrapped: What `only_root` found in it.
        adapter: One of its adapters.
    """
    ours = sum(tensor.numel() for tensor in adapter.tensors.values() if isinstance(tensor, nn.Parameter))
    bypassed = [f"{wrapped.path}.{name}" for name in adapter.state.bypassed]
    return ParameterCount(ours, ours + _count_base(model, bypassed))


def _count_base(model: nn.Module, bypassed: Iterable[str]) -> int:
    """Count the image model's parameters, except those in whose place copies run."""
    ours = {id(p) for each in model.modules() if isinstance(each, AIMState) for p in each.parameters()}
    skipped = {canonical_path(name.lstrip(".")) for name in bypassed}
    return sum(
        p.numel() for name, p in model.named_parameters() if id(p) not in ours and canonical_path(name) not in skipped
    )


def print_trainable_parameters(model: nn.Module) -> None:
    """Print the counts of `count_parameters` in one line.

    Args:
        model: A wrapped model.

    Raises:
        StateError: The model is not wrapped.
    """
    count = count_parameters(model)
    share = 100 * count.trainable / count.total
    print(f"trainable params: {count.trainable:,} || all params: {count.total:,} || trainable%: {share:.4f}")
