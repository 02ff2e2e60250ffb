"""Modules whose class is swapped for a sub-class of (our mixin, their own class), and back.

The object stays the same: ``isinstance``, state dict keys, hooks and references keep working, and putting the
original class back undoes it. Classes are cached, so equal modules share one; pickling and ``deepcopy`` rebuild the
class from its parts.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable, Iterable
from typing import Any, ClassVar

from torch import nn

from aim_adapters.errors import StateError


class Patched(nn.Module):
    """The base of every mixin. A mixin stands before the module's own class, so ``super()`` is the image model's.

    Sub-classes may define `namespace` to add attributes that depend on ``spec``.
    """

    aim_mixin: ClassVar[type[Patched]]
    aim_base: ClassVar[type[nn.Module]]
    aim_spec: ClassVar[Any]

    @classmethod
    def namespace(cls, base: type[nn.Module], spec: Any) -> dict[str, Any]:
        """Return what the new class defines beside the mixin's own attributes."""
        return {}

    def _get_name(self) -> str:
        return f"AIM({self.aim_base.__name__})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle by the parts of the class, which itself cannot be imported."""
        reduced = super().__reduce_ex__(protocol)
        assert isinstance(reduced, tuple)
        return (_rebuild, (self.aim_mixin, self.aim_base, self.aim_spec), *reduced[2:])


_classes: dict[tuple[type[Patched], type[nn.Module], Hashable], type[nn.Module]] = {}


def patched_class(mixin: type[Patched], base: type[nn.Module], spec: Hashable) -> type[nn.Module]:
    """Return the cached sub-class of (mixin, base).

    It keeps the name and module of ``base``: libraries write or match class names.
    """
    key = (mixin, base, spec)
    if key not in _classes:
        namespace = {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "aim_mixin": mixin,
            "aim_base": base,
            "aim_spec": spec,
            **mixin.namespace(base, spec),
        }
        _classes[key] = type(base.__name__, (mixin, base), namespace)
    return _classes[key]


def patch(module: nn.Module, mixin: type[Patched], spec: Hashable = None) -> None:
    """Swap the class of ``module`` in place."""
    module.__class__ = patched_class(mixin, type(module), spec)


def unpatch(module: nn.Module) -> None:
    """Put the original class back."""
    assert isinstance(module, Patched)
    if "forward" in vars(module) and foreign_forward(module) is None:
        del module.forward
    module.__class__ = module.aim_base  # type: ignore[assignment]


def foreign_forward(module: nn.Module) -> Callable[..., Any] | None:
    """Return the ``forward`` that another tool has put on a module itself, in front of that of its class, or None.

    Accelerate's ``unwrap_model`` leaves the one of the class there, which is nobody's but the module's own.
    """
    forward: Callable[..., Any] | None = vars(module).get("forward")
    patched = isinstance(module, Patched) and getattr(forward, "__func__", None) is type(module).forward
    return None if patched else forward


def in_place_of(original: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function the name and signature of the model's own method, which trainers and tracers read.

    It does not say that it wraps that method (``__wrapped__``): tools that undo what they have put around a
    ``forward``, such as Accelerate's ``unwrap_model``, would go on and put the image model's own back.

    Args:
        original: The method.
        function: What runs in its place.

    Returns:
        The same function.
    """
    functools.update_wrapper(function, original)
    function.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    del function.__wrapped__  # type: ignore[attr-defined]
    return function


def wrap_forward(base: type[nn.Module], forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``forward`` as a function of its own with the name and signature of the model's own."""

    def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    return in_place_of(base.forward, wrapped)


def blocked_methods(base: type[nn.Module], names: Iterable[str]) -> dict[str, Callable[..., Any]]:
    """Return those of some methods that a class has, as methods that refuse to run while the model is wrapped."""
    return {name: _blocked(name) for name in names if hasattr(base, name)}


def _blocked(name: str) -> Callable[..., Any]:
    def refuse(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        raise StateError(
            f"{name}() would replace, cut, reset or freeze parts under the adapters; wrapping has frozen the image "
            "model, and num_classes=K gives it a new classification layer; for anything else call "
            "unwrap_image_model(model) first"
        )

    refuse.__name__ = name
    return refuse


def _rebuild(mixin: type[Patched], base: type[nn.Module], spec: Hashable) -> nn.Module:
    cls = patched_class(mixin, base, spec)
    return cls.__new__(cls)
