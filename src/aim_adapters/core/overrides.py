"""Methods and attributes of an image model that answer for the video model while it is wrapped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from aim_adapters.anatomy import Override
from aim_adapters.core.patching import in_place_of
from aim_adapters.core.state import RootState, states


def overriding(base: type[nn.Module], overrides: tuple[tuple[str, Override], ...]) -> dict[str, Callable[..., Any]]:
    """Return those methods of a class that the anatomy overrides.

    Args:
        base: The class.
        overrides: `BackboneAnatomy.overrides`.
    """
    return {name: _override(base, name, function) for name, function in overrides if hasattr(base, name)}


def counting_classes(name: str) -> property:
    """Return an attribute of the root with the number of classes: that of the adapter, if it has its own classes.

    Args:
        name: `BackboneAnatomy.class_count`. The image model's own value stays in the root's ``__dict__``.
    """

    def read(self: Any) -> Any:
        adapted = self.aim.enabled and self.aim.config.num_classes is not None
        return self.aim.config.num_classes if adapted else vars(self)[name]

    def write(self: Any, value: Any) -> None:
        vars(self)[name] = value

    return property(read, write)


def _override(base: type[nn.Module], name: str, function: Override) -> Callable[..., Any]:
    method = getattr(base, name)

    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        adapter = next(state for state in states(self) if isinstance(state, RootState))
        return function(self, adapter, partial(method, self), *args, **kwargs)

    return in_place_of(method, run)
