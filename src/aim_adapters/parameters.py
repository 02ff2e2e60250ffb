"""Name, count and group the parameters that train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from aim_adapters.errors import ConfigError, StateError
from aim_adapters.layers.state import AIMState, SharedState, states
from aim_adapters.layers.temporal import is_temporal

# Names that wrappers put into the middle of a parameter's path.
_WRAPPER_PARTS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


class ParameterCount(NamedTuple):
    """Numbers of parameters that take part in the video model; what our copies bypass does not count."""

    trainable: int
    total: int


def canonical_path(name: str) -> str:
    """Strip what DDP, FSDP, ``torch.compile`` and activation checkpointing put into a dotted path."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_PARTS)


def find_roots(model: nn.Module) -> dict[str, tuple[nn.Module, SharedState]]:
    """Return every wrapped root inside ``model`` by its path, with its shared state.

    Raises:
        TypeError: ``model`` is not a module.
        StateError: Nothing in it is wrapped.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    roots = {
        name: (module, shared)
        for name, module in model.named_modules()
        if isinstance(shared := module._modules.get("aim"), SharedState)
    }
    if not roots:
        raise StateError(f"this {type(model).__name__} is not wrapped; call wrap_image_model(model, num_frames) first")
    return roots


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
    """Return parameter groups for an optimiser: weights decay; biases, norms and temporal positions do not.

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
    bypassed = [f"{path}.{name}" for path, (_, shared) in find_roots(model).items() for name in shared.bypassed]
    ours = sum(parameter.numel() for _, parameter in declared_parameters(model))
    return ParameterCount(sum(p.numel() for p in trainable_parameters(model)), ours + _count_base(model, bypassed))


def count_adapter(model: nn.Module, shared: SharedState, tensors: Mapping[str, Tensor]) -> ParameterCount:
    """Count the parameters that are active when one adapter runs, whether it does or not, as if all of it trained.

    Args:
        model: A wrapped model with one root.
        shared: The adapter's shared state.
        tensors: Its tensors.
    """
    ((path, _),) = find_roots(model).items()
    ours = sum(tensor.numel() for tensor in tensors.values() if isinstance(tensor, nn.Parameter))
    return ParameterCount(ours, ours + _count_base(model, [f"{path}.{name}" for name in shared.bypassed]))


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
