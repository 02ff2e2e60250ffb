"""Lookup of what is ours inside a model, whatever other tools have put around it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from aim_adapters.arguments import shown
from aim_adapters.core.state import RootState, container_of, declared_tensors, states
from aim_adapters.errors import ConfigError, StateError


class WrappedModel(NamedTuple):
    """A wrapped image model inside what a caller holds.

    Attributes:
        path: Path of the root.
        root: The module whose input is videos.
        state: Its container.
    """

    path: str
    root: nn.Module
    state: RootState

    def find(self, name: str | None) -> FoundAdapter:
        """Return one of the model's adapters.

        Args:
            name: Its name, or None for the one that runs.

        Raises:
            ConfigError: There is no adapter of this name.
        """
        if name is not None:
            self.require_known(name)
        if name is None or name == self.state.name:
            return FoundAdapter(self.state, declared_tensors(self.root))
        adapter = self.state.idle_adapters()[name]
        return FoundAdapter(adapter.state, adapter.declared())

    def names(self) -> list[str]:
        """Return the names of the model's adapters, the one that runs first."""
        return [self.state.name, *self.state.idle_adapters()]

    def require_known(self, name: str) -> None:
        """Refuse the name of no adapter.

        Raises:
            ConfigError: There is no adapter of this name.
        """
        if not isinstance(name, str) or name not in self.names():
            raise ConfigError(f"no adapter is named {shown(name)}; this model has {', '.join(map(repr, self.names()))}")


class FoundAdapter(NamedTuple):
    """One adapter of a wrapped model.

    Attributes:
        state: Its root's container.
        tensors: Every tensor of it by its key in a checkpoint.
    """

    state: RootState
    tensors: dict[str, Tensor]


def is_wrapped(model: nn.Module) -> bool:
    """Return whether a module is, or holds, a wrapped image model.

    Args:
        model: Any module.

    Raises:
        TypeError: ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    return next(states(model), None) is not None


def find_roots(model: nn.Module) -> list[WrappedModel]:
    """Return every wrapped image model inside ``model``.

    Raises:
        TypeError: ``model`` is not a module.
        StateError: Nothing in it is wrapped.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    found = [
        WrappedModel(path, module, state)
        for path, module in model.named_modules()
        if isinstance(state := container_of(module), RootState)
    ]
    if not found:
        raise StateError(f"this {type(model).__name__} is not wrapped; call wrap_image_model(model, num_frames) first")
    return found


def only_root(model: nn.Module) -> WrappedModel:
    """Return the one wrapped image model inside ``model``.

    Raises:
        TypeError: ``model`` is not a module.
        StateError: It is not wrapped, or holds several wrapped models.
    """
    found = find_roots(model)
    if len(found) > 1:
        raise StateError(
            f"several wrapped models found, at {sorted(each.path for each in found)}; take them one by one"
        )
    return found[0]
