"""What a decision about modules was made from, and whether any of it has changed since.

Looking again takes some ten microseconds for a block, deciding again hundreds.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

from torch import Tensor, nn

_REQUIRES_GRAD = attrgetter("requires_grad")
_MEMBERS = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# What every module has beside those: its mode, and how state dicts are read and written.
_STANDARD = frozenset(nn.Module().__dict__) - {*_MEMBERS, *_HOOKS}


class Watch:
    """A memory of modules and all that is inside: their classes, parts, tensors, settings and hooks.

    The modules themselves are given again when they are looked at, and so may hold what watches them without a cycle.

    Args:
        modules: What to watch. Hooks on these do not count: a call runs them, whatever is decided inside.
        ignoring: Names of their attributes that may change, or are watched by themselves.
    """

    def __init__(self, *modules: nn.Module, ignoring: frozenset[str] = frozenset()) -> None:
        children = [child for module in modules for name, child in module.named_children() if name not in ignoring]
        self._inner = [module for child in children for module in child.modules()]
        self._outer_classes, self._classes = list(map(type, modules)), list(map(type, self._inner))
        self._dicts = [module.__dict__ for module in self._inner]
        settings = [_Values(held, _STANDARD) for held in self._dicts]
        self.getters = [(each.get, held) for each, held in zip(settings, self._dicts, strict=True)]
        self._settings = list(chain.from_iterable(each.values for each in settings))
        self._sizes = list(map(len, self._dicts))
        self._outer = [_Values(held, ignoring | _STANDARD | {*_HOOKS, *_MEMBERS}) for held in _dicts_of(modules)]
        self._members = [held[name].values() for held in self._dicts for name in _MEMBERS]
        self._objects = list(chain.from_iterable(self._members))
        self._hooks = [held[name] for held in self._dicts for name in _HOOKS]
        self._hooked = list(map(len, self._hooks))
        held = (*self._objects, *chain.from_iterable(values.values for values in self._outer))
        self._tensors = [value for value in held if isinstance(value, Tensor)]
        self._kinds, self._trains = list(map(type, self._tensors)), list(map(_REQUIRES_GRAD, self._tensors))

    def unchanged(self, *modules: nn.Module) -> bool:
        """Return whether all is as it was; values of tensors do not count.

        Args:
            modules: The same modules.
        """
        found = list(chain.from_iterable(self._members))
        return (
            len(found) == len(self._objects)
            and all(map(is_, found, self._objects))
            and list(map(len, self._hooks)) == self._hooked
            and list(map(type, self._inner)) == self._classes
            and list(map(type, modules)) == self._outer_classes
            and list(map(_REQUIRES_GRAD, self._tensors)) == self._trains
            and list(map(type, self._tensors)) == self._kinds
            and list(map(len, self._dicts)) == self._sizes
            and self._same_settings()
            and all(map(_Values.same, self._outer, _dicts_of(modules)))
        )

    def _same_settings(self) -> bool:
        # Not by a _Values for each: there are dozens in a block.
        try:
            values = [get(held) for get, held in self.getters]
        except KeyError:
            return False
        return all(map(is_, chain.from_iterable(values), self._settings))


class _Values:
    """The values of a mapping, by identity.

    Args:
        held: The mapping.
        ignoring: Keys that may change.
    """

    __slots__ = ("_count", "get", "values")

    def __init__(self, held: Mapping[str, Any], ignoring: frozenset[str]) -> None:
        names = [name for name in held if name not in ignoring]
        # By two names at least: by one it returns no tuple.
        self.get = itemgetter(*names, *names[:1]) if names else _nothing
        self._count = len(held)
        self.values: tuple[Any, ...] = self.get(held)

    def same(self, held: Mapping[str, Any]) -> bool:
        if len(held) != self._count:
            return False
        try:
            return all(map(is_, self.get(held), self.values))
        except KeyError:
            return False


def _nothing(held: Mapping[str, Any]) -> tuple[Any, ...]:
    return ()


def _dicts_of(modules: tuple[nn.Module, ...]) -> list[Mapping[str, Any]]:
    """Return the attributes of modules, and their members as mappings of their own."""
    return [held for module in modules for held in (module.__dict__, *(module.__dict__[name] for name in _MEMBERS))]
