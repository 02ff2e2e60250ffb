"""Several adapters on one image model, of which one runs.

The adapter that runs is inside the blocks, under the same names as if it were the only one. The others are kept whole
and frozen in a container of the root. Each has its own settings: frames, widths, adapted blocks and classes may differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aim_adapters.arguments import read_items, require_numbers, shown
from aim_adapters.clip_spec import named_classes
from aim_adapters.config import MEANING, AIMConfig
from aim_adapters.core import (
    AdapterSet,
    WrappedModel,
    build_adapter,
    enough_memory,
    install_adapter,
    only_root,
    require_local,
    warn_idle_taps,
    withdraw_adapter,
)
from aim_adapters.errors import ConfigError, StateError

_LOCAL = "give the model its adapters and choose one first, then shard or distribute it"


def list_adapters(model: nn.Module) -> dict[str, AIMConfig]:
    """Return the settings of every adapter by name, the one that runs first.

    Args:
        model: A wrapped model.

    Raises:
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    state = only_root(model).state
    return {state.name: state.config, **{name: idle.state.config for name, idle in state.idle_adapters().items()}}


def set_adapter(model: nn.Module, name: str) -> None:
    """Choose the adapter that runs; the one that ran becomes idle, with its parameters frozen until it runs again.

    Each adapter remembers which of its parameters train. A compiled model is not compiled again for an adapter with the
    same settings. An optimizer keeps the parameters it was given.

    Args:
        model: A wrapped model.
        name: Name of an adapter in `list_adapters`.

    Raises:
        ConfigError: There is no adapter of this name.
        StateError: The model is not wrapped, holds several wrapped models, is sharded or distributed, or its adapters
            are disabled.
    """
    wrapped = only_root(model)
    root, state = wrapped.root, wrapped.state
    require_local(model, "set_adapter", _LOCAL)
    wrapped.require_known(name)
    if name == state.name:
        return
    if not state.enabled:
        raise StateError("set_adapter: adapters are disabled; leave disable_adapters first")
    incoming = state.idle_adapters()[name]
    outgoing = withdraw_adapter(root)
    installed = False
    try:
        incoming.state.execution = state.execution
        install_adapter(root, incoming)
        installed = True
    finally:
        if not installed:
            install_adapter(root, outgoing)
        else:
            state.unshelve(name)
            incoming.state.take_over_shelf(state)
            incoming.state.shelve(outgoing)


def add_adapter(model: nn.Module, name: str, config: AIMConfig, *, labels: Sequence[str] | None = None) -> None:
    """Add a new, untrained adapter to a wrapped model; it is idle until `set_adapter` makes it run.

    Args:
        model: A wrapped model.
        name: Name of the new adapter: not taken, without dots, and not the name of an attribute of ``nn.Module``.
        config: Settings of the new adapter.
        labels: Names of its classes in the order of the outputs, saved with it; they imply ``num_classes``.

    Raises:
        ConfigError: The name cannot be used, or the settings or the labels do not fit the model.
        StateError: The model is not wrapped, holds several wrapped models, or is sharded or distributed.
    """
    wrapped = only_root(model)
    if labels is not None and isinstance(config, AIMConfig):
        labels, num_classes = named_classes(labels, config.num_classes)
        config = dataclasses.replace(config, num_classes=num_classes)
    adapter = build_beside(model, wrapped, name, config)
    adapter.state.clip = {} if labels is None else {"labels": labels}
    wrapped.state.shelve(adapter)
    warn_idle_taps(config)


def delete_adapter(model: nn.Module, name: str) -> None:
    """Delete an idle adapter.

    Args:
        model: A wrapped model.
        name: Name of the adapter.

    Raises:
        ConfigError: There is no adapter of this name.
        StateError: It is the adapter that runs; or the model is not wrapped, holds several wrapped models, or is
            sharded or distributed.
    """
    wrapped = only_root(model)
    require_local(model, "delete_adapter", _LOCAL)
    wrapped.require_known(name)
    if name == wrapped.state.name:
        raise StateError(f"{name!r} is the adapter that runs; set_adapter another first, or unwrap_image_model(model)")
    deleted = wrapped.state.unshelve(name)
    if wrapped.state.graphs is not None:
        wrapped.state.graphs.forget(deleted.state)


def average_adapters(
    model: nn.Module, names: Sequence[str], *, into: str, weights: Sequence[float] | None = None
) -> None:
    """Add an adapter whose parameters are the weighted mean of other adapters' (a model soup, Wortsman et al. 2022).

    The mean is computed in float64.

    Args:
        model: A wrapped model.
        names: Two or more adapters with the same settings.
        into: Name of the new adapter, as in `add_adapter`.
        weights: One number >= 0 per adapter, divided by their sum; by default all equal.

    Raises:
        ConfigError: A name is unknown, ``into`` cannot be used, the settings differ, or the weights do not fit.
        StateError: As for `add_adapter`.
    """
    refusal = "names: average_adapters takes two names or more"
    listed = read_items(names, refusal)
    if len(listed) < 2 or any(name is None for name in listed):
        raise ConfigError(f"{refusal}, got {shown(names)}")
    wrapped = only_root(model)
    require_name(into, "into")
    adapters = [wrapped.find(name) for name in listed]
    first, first_tensors = adapters[0]
    for state, tensors in adapters:
        differs = any(getattr(state.config, field) != getattr(first.config, field) for field in MEANING)
        if differs or _shapes(tensors) != _shapes(first_tensors):
            raise ConfigError(
                f"{state.name!r} differs from {first.name!r} in its settings: {state.config} against {first.config}"
            )
    shares = _shares(weights, len(listed))
    average = build_beside(model, wrapped, into, first.config)
    with torch.no_grad():
        for key, target in average.declared().items():
            mean = sum(
                share * adapter.tensors[key].to(torch.float64) for share, adapter in zip(shares, adapters, strict=True)
            )
            target.copy_(torch.as_tensor(mean))
    if all(adapter.state.origin == first.origin for adapter in adapters):
        average.state.origin = first.origin  # they share a base model
    average.state.clip = {
        fact: value
        for fact, value in first.clip.items()
        if all(adapter.state.clip.get(fact) == value for adapter in adapters)
    }
    wrapped.state.shelve(average)


def build_beside(
    model: nn.Module, wrapped: WrappedModel, name: str, config: AIMConfig, *, on_meta: bool = False
) -> AdapterSet:
    """Build an idle adapter for a wrapped model, without adding it.

    Args:
        model: A wrapped model.
        wrapped: Result of `only_root` for it.
        name: Name of the new adapter.
        config: Settings of the new adapter.
        on_meta: Build new layers on the meta device, to be filled with tensors from a file.

    Returns:
        The adapter, all of its parameters frozen.

    Raises:
        As `add_adapter`.
    """
    require_local(model, "add_adapter", _LOCAL)
    if not isinstance(config, AIMConfig):
        raise ConfigError(f"config must be an AIMConfig, got {type(config).__name__}")
    require_name(name)
    if name in wrapped.names():
        raise ConfigError(f"an adapter is named {name!r} already; delete_adapter it first, or choose another name")
    if torch.is_inference_mode_enabled():
        raise StateError("new parameters made under torch.inference_mode() cannot train; add adapters outside of it")
    with enough_memory(config):
        adapter = build_adapter(wrapped.root, config, record=wrapped.state.record, name=name, on_meta=on_meta)
    adapter.rest()
    return adapter


def require_name(name: str, argument: str = "name") -> None:
    """Refuse an invalid name of an adapter.

    Args:
        name: The name.
        argument: Name of the argument.

    Raises:
        ConfigError: It is not a string, is empty, has dots, or is an attribute of ``nn.Module``.
    """
    if not isinstance(name, str) or not name or "." in name or hasattr(nn.Module(), name):
        raise ConfigError(
            f"{argument}: an adapter's name must be a string without dots that is not an attribute of a module, got "
            f"{shown(name)}"
        )


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in tensors.items()}


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1 / count] * count
    expected = f"{count} finite numbers >= 0, not all of them 0"
    numbers = require_numbers("weights", weights, count=count, expected=expected, low=0.0)
    if not max(numbers) > 0:
        raise ConfigError(f"weights must be {expected}, got {shown(weights)}")
    parts = [number / max(numbers) for number in numbers]  # the sum of the numbers may be infinite
    return [part / sum(parts) for part in parts]
