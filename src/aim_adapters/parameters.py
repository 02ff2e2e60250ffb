"""The parameters that train: their names, numbers and groups for an optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from aim_adapters.arguments import require_flags, require_number
from aim_adapters.core import (
    FoundAdapter,
    WrappedModel,
    canonical_path,
    find_roots,
    listed,
    note_thawed,
    other_parameters,
    own_parameters,
    require_parts,
    states,
    warn_once,
)
from aim_adapters.errors import StateError, warn
from aim_adapters.layers import is_temporal


class ParameterCount(NamedTuple):
    """The numbers of active parameters of a video model.

    Attributes:
        trainable: Parameters that train, whoever made them.
        total: All active parameters; the frozen norm and head that a trained copy replaces are not counted.
    """

    trainable: int
    total: int


def declared_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters of the adapters that run in ``model``, each with its key in a checkpoint.

    Args:
        model: Any module.
    """
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
        TypeError: ``model`` is not a module.
        StateError: The model is not wrapped.
    """
    find_roots(model)
    return [parameter for _, parameter in declared_parameters(model) if parameter.requires_grad]


def adapter_param_groups(model: nn.Module, weight_decay: float, *, others: bool = False) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer: weights decay; biases, norms and temporal positions do not.

    A warning names the adapters' parameters that are frozen, and what else trains in ``model`` and is left out.

    Args:
        model: A wrapped model, or a module that contains one.
        weight_decay: Weight decay of the first group, >= 0 (0.05 in the paper).
        others: Include whatever else requires a gradient: layers around the wrapped model, or parameters of the image
            model that were made trainable. `save_adapters` does not save them.

    Returns:
        One or two groups ``{"params": [...], "weight_decay": ...}``, without frozen parameters.

    Raises:
        TypeError: ``model`` is not a module.
        StateError: The model is not wrapped; another tool has replaced parts of it; or all parameters are frozen.
        ConfigError: ``weight_decay`` is not a finite number >= 0, or ``others`` is not a flag.
    """
    weight_decay = require_number("weight_decay", weight_decay, low=0.0)
    require_flags(others=others)
    trains = _trains(model, others=others)
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for key, parameter in trains:
        groups[parameter.ndim <= 1 or is_temporal(key)]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def _trains(model: nn.Module, *, others: bool) -> list[tuple[str, nn.Parameter]]:
    """Return what an optimizer is given, each with a name; warn of what it is not given."""
    for wrapped in find_roots(model):
        require_parts(wrapped.root, wrapped.state)
        note_thawed(wrapped.state, other_parameters(wrapped.root))
        ours = declared_parameters(wrapped.root)
        frozen = [key for key, parameter in ours if not parameter.requires_grad]
        if 0 < len(frozen) < len(ours):  # all of them: another one trains, or it is an error below
            warn_once(wrapped.state, f"parameters of the adapters are frozen, and in no group: {listed(frozen)}")
    trains = [(key, parameter) for key, parameter in declared_parameters(model) if parameter.requires_grad]
    found = other_parameters(model)
    if others:
        trains += found.items()
    if not trains:
        raise StateError(
            "no parameter of the adapters requires a gradient: another tool or model.requires_grad_(False) has frozen "
            "them; set requires_grad_(True) on the parameters under the name 'aim'"
        )
    if found and not others:
        warn(
            f"parameters that are no part of the adapters require a gradient: {listed(found)}; they are in no group, "
            "and save_adapters does not save them; pass others=True to train them too, or freeze them"
        )
    return trains


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the active parameters of a wrapped model.

    These are the image model's, without the frozen norm and head that a trained copy replaces, those of the adapter
    that runs, and those of layers around the wrapped model. The paper's tables count in the same way.

    Args:
        model: A wrapped model.

    Raises:
        TypeError: ``model`` is not a module.
        StateError: The model is not wrapped.
    """
    bypassed = [f"{wrapped.path}.{name}" for wrapped in find_roots(model) for name in wrapped.state.bypassed]
    ours = [parameter for _, parameter in declared_parameters(model)]
    trains = [*(parameter for parameter in ours if parameter.requires_grad), *other_parameters(model).values()]
    trainable = sum(map(Tensor.numel, trains))
    return ParameterCount(trainable, sum(map(Tensor.numel, ours)) + _count_base(model, bypassed))


def count_adapter(model: nn.Module, wrapped: WrappedModel, adapter: FoundAdapter) -> ParameterCount:
    """Count the parameters that are active while a given adapter runs, all of its own counted as trainable.

    Args:
        model: A wrapped model with one root.
        wrapped: Result of `only_root` for it.
        adapter: One of its adapters, which may be idle.
    """
    ours = sum(tensor.numel() for tensor in adapter.tensors.values() if isinstance(tensor, nn.Parameter))
    bypassed = [f"{wrapped.path}.{name}" for name in adapter.state.bypassed]
    return ParameterCount(ours, ours + _count_base(model, bypassed))


def _count_base(model: nn.Module, bypassed: Iterable[str]) -> int:
    """Count the image model's parameters, except those that a trained copy replaces."""
    ours = own_parameters(model)
    skipped = {canonical_path(name.lstrip(".")) for name in bypassed}
    return sum(
        p.numel()
        for name, p in model.named_parameters()
        if id(p) not in ours and (p.requires_grad or canonical_path(name) not in skipped)
    )


def print_trainable_parameters(model: nn.Module) -> None:
    """Print the counts of `count_parameters` in one line.

    Args:
        model: A wrapped model.

    Raises:
        TypeError: ``model`` is not a module.
        StateError: The model is not wrapped.
    """
    count = count_parameters(model)
    share = 100 * count.trainable / count.total
    print(f"trainable params: {count.trainable:,} || all params: {count.total:,} || trainable%: {share:.4f}")
