"""Keep several adapters on one image model, and choose which of them runs.

The adapter that runs lies in the blocks, under the names that one adapter alone has. The others rest whole below the
root, frozen, in their own sizes: frames, widths, adapted blocks and classes may differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aim_adapters.config import MEANING, AIMConfig
from aim_adapters.errors import ConfigError, StateError
from aim_adapters.guards import only_root, require_local
from aim_adapters.layers.state import IDLE, AdapterSet, declared_tensors, idle_adapters
from aim_adapters.ops.temporal_attention import choose
from aim_adapters.plan import build_adapter, install, rest, root_state, withdraw
from aim_adapters.root import RootState

_LOCAL = "give the model its adapters and choose one first, then shard or distribute it"


def list_adapters(model: nn.Module) -> dict[str, AIMConfig]:
    """Return the settings of every adapter by name, the one that runs first.

    Args:
        model: A wrapped model.

    Raises:
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    _, _, shared = only_root(model)
    idle = {name: root_state(each).config for name, each in idle_adapters(shared).items()}
    return {shared.name: shared.config, **idle}


def set_adapter(model: nn.Module, name: str) -> None:
    """Choose the adapter that runs; the other rests, with its parameters frozen until it runs again.

    Which parameters of an adapter train is its own: it is neither changed by running nor by resting. A compiled model
    does not compile again for an adapter of the same settings. An optimiser keeps the parameters it was given.

    Args:
        model: A wrapped model.
        name: One of `list_adapters`.

    Raises:
        ConfigError: There is no adapter of this name.
        StateError: The model is not wrapped, holds several wrapped models, is sharded or distributed, or its adapters
            are disabled.
    """
    _, root, shared = only_root(model)
    require_local(model, "set_adapter", _LOCAL)
    require_known(shared, name)
    if name == shared.name:
        return
    if not shared.enabled:
        raise StateError("set_adapter: adapters are disabled; leave disable_adapters first")
    shelf = shared._modules[IDLE]
    assert shelf is not None
    incoming, outgoing = shelf._modules[name], withdraw(root)
    assert isinstance(incoming, AdapterSet)
    chosen = outgoing
    try:
        install(root, incoming)
        chosen = incoming
    finally:
        if chosen is outgoing:
            install(root, outgoing)
        else:
            del shelf._modules[name]
            shelf._modules[shared.name] = outgoing
        root_state(chosen).add_module(IDLE, shelf)


def add_adapter(model: nn.Module, name: str, config: AIMConfig) -> None:
    """Add a fresh adapter beside those that a wrapped model has; `set_adapter` makes it run.

    Args:
        model: A wrapped model.
        name: Its name: any but a taken one, without dots, and none that every module has as an attribute.
        config: Its settings.

    Raises:
        ConfigError: The name cannot be used, or the settings do not fit the model.
        StateError: The model is not wrapped, holds several wrapped models, or is sharded or distributed.
        UnsupportedKernelError: The attention named in the settings cannot run.
    """
    shelve(model, build_beside(model, name, config))


def delete_adapter(model: nn.Module, name: str) -> None:
    """Drop an adapter that does not run.

    Args:
        model: A wrapped model.
        name: Its name.

    Raises:
        ConfigError: There is no adapter of this name.
        StateError: It is the one that runs; or the model is not wrapped, holds several wrapped models, or is sharded or
            distributed.
    """
    _, _, shared = only_root(model)
    require_local(model, "delete_adapter", _LOCAL)
    require_known(shared, name)
    if name == shared.name:
        raise StateError(f"{name!r} is the adapter that runs; set_adapter another first, or unwrap_image_model(model)")
    shelf = shared._modules[IDLE]
    assert shelf is not None
    del shelf._modules[name]
    if not shelf._modules:
        del shared._modules[IDLE]


def average_adapters(
    model: nn.Module, names: Sequence[str], *, name: str, weights: Sequence[float] | None = None
) -> None:
    """Add an adapter whose parameters are the weighted mean of others' (a model soup, Wortsman et al. 2022).

    Args:
        model: A wrapped model.
        names: Two or more adapters of the same settings, and so of the same shapes.
        name: Name of the new adapter, as in `add_adapter`.
        weights: One number >= 0 for each of them, divided by their sum; by default all equal.

    Raises:
        ConfigError: A name is unknown, the new one cannot be used, the settings differ, or the weights do not fit.
        StateError: As for `add_adapter`.
    """
    if isinstance(names, str) or not isinstance(names, Sequence) or len(names) < 2 or None in names:
        raise ConfigError(f"average_adapters takes two names or more, got {names!r}")
    tensors = [tensors_of(model, each) for each in names]
    states = [state_of(model, each) for each in names]
    first = states[0]
    for state, other in zip(states, tensors, strict=True):
        differs = any(getattr(state.config, field) != getattr(first.config, field) for field in MEANING)
        if differs or _shapes(other) != _shapes(tensors[0]):
            raise ConfigError(
                f"{state.name!r} differs from {first.name!r} in its settings: {state.config} against {first.config}"
            )
    shares = _shares(weights, len(names))
    average = build_beside(model, name, first.config)
    with torch.no_grad():
        for key, target in average.declared().items():
            mean = sum(share * each[key].to(torch.float64) for share, each in zip(shares, tensors, strict=True))
            target.copy_(torch.as_tensor(mean))
    if all(state.origin == first.origin for state in states):
        root_state(average).origin = first.origin  # one base, one way to make clips, one list of classes
    shelve(model, average)


def tensors_of(model: nn.Module, name: str | None) -> dict[str, Tensor]:
    """Return every tensor of an adapter by its key in a checkpoint.

    Args:
        model: A wrapped model.
        name: Its name, or None for the one that runs.

    Raises:
        ConfigError: There is no adapter of this name.
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    return declared_tensors(model) if (idle := _idle(model, name)) is None else idle.declared()


def state_of(model: nn.Module, name: str | None) -> RootState:
    """Return the shared state of an adapter.

    Args:
        model: A wrapped model.
        name: Its name, or None for the one that runs.

    Raises:
        ConfigError: There is no adapter of this name.
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    return only_root(model)[2] if (idle := _idle(model, name)) is None else root_state(idle)


def build_beside(model: nn.Module, name: str, config: AIMConfig, *, on_meta: bool = False) -> AdapterSet:
    """Build another adapter for a wrapped model, which stays as it is.

    Args:
        model: A wrapped model.
        name: Name of the new adapter.
        config: Its settings.
        on_meta: Build new layers on the meta device, for tensors that come from a file.

    Raises:
        As `add_adapter`.
    """
    _, root, shared = only_root(model)
    require_local(model, "add_adapter", _LOCAL)
    if not isinstance(config, AIMConfig):
        raise ConfigError(f"config must be an AIMConfig, got {type(config).__name__}")
    choose(config.attention)
    _require_new(shared, name)
    if torch.is_inference_mode_enabled():
        raise StateError("new parameters made under torch.inference_mode() cannot train; add adapters outside of it")
    return build_adapter(root, config, record=shared.record, name=name, on_meta=on_meta)


def shelve(model: nn.Module, adapter: AdapterSet) -> None:
    """Put a new adapter beside the one that runs.

    Args:
        model: A wrapped model.
        adapter: What `build_beside` returned for it.
    """
    _, _, shared = only_root(model)
    if shared._modules.get(IDLE) is None:
        shared.add_module(IDLE, nn.Module())
    shelf, state = shared._modules[IDLE], root_state(adapter)
    assert shelf is not None
    rest(adapter)
    shelf.add_module(state.name, adapter)
    shelf.train(shared.training)


def require_known(shared: RootState, name: str) -> None:
    """Refuse the name of no adapter.

    Raises:
        ConfigError: There is no adapter of this name.
    """
    known = [shared.name, *idle_adapters(shared)]
    if name not in known:
        raise ConfigError(f"no adapter is named {name!r}; this model has {', '.join(map(repr, known))}")


def require_name(name: str) -> None:
    """Refuse what cannot be the name of an adapter.

    Raises:
        ConfigError: It is no string, has dots, or is an attribute that every module has.
    """
    if not isinstance(name, str) or not name or "." in name or hasattr(nn.Module(), name):
        raise ConfigError(
            f"an adapter's name must be a string without dots that is no attribute of a module, got {name!r}"
        )


def _require_new(shared: RootState, name: str) -> None:
    require_name(name)
    if name in (shared.name, *idle_adapters(shared)):
        raise ConfigError(f"an adapter is named {name!r} already; delete_adapter it first, or choose another name")


def _idle(model: nn.Module, name: str | None) -> AdapterSet | None:
    _, _, shared = only_root(model)
    if name in (None, shared.name):
        return None
    assert name is not None
    require_known(shared, name)
    return idle_adapters(shared)[name]


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in tensors.items()}


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    try:
        given = [1.0] * count if weights is None else [float(weight) for weight in weights]
    except (TypeError, ValueError):
        given = []
    if len(given) != count or not all(0 <= weight < math.inf for weight in given) or not sum(given) > 0:
        raise ConfigError(f"weights must be {count} finite numbers >= 0, not all of them 0, got {weights!r}")
    return [weight / sum(given) for weight in given]
