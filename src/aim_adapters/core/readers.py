"""What takes images beside the root's ``forward``: other methods of the root, and the modules inside of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from aim_adapters.core.inputs import explain_failure
from aim_adapters.core.patches import frame_rows, gives_patches, named_inputs, refuse_given
from aim_adapters.core.patching import Patched, blocked_methods, in_place_of, wrap_forward
from aim_adapters.errors import AIMError, InputError


def methods_of(
    base: type[nn.Module], names: tuple[str, ...], make: Callable[..., Any]
) -> dict[str, Callable[..., Any]]:
    """Return replacements for those of the named methods that a class has.

    Args:
        base: The class.
        names: Names of methods.
        make: ``(base, name) -> function``.
    """
    return {name: make(base, name) for name in names if hasattr(base, name)}


def take_videos(base: type[nn.Module], name: str) -> Callable[..., Any]:
    """Return a method of the root that takes 5-D videos too, and reads them as the flat frames of ``forward``."""

    def flatten(root: Any, images: Any) -> Any:
        return root._flatten(images) if is_video(images) else images

    method, read_images = getattr(base, name), _reading(base, name, flatten, explain_failure)
    names = tuple(inspect.signature(method).parameters)[1:]

    def run(root: Any, *args: Any, **kwargs: Any) -> Any:
        anatomy = root.aim.anatomy
        if anatomy.optional_patch_inputs:
            if root.aim.call is not None:  # inside of the root's own forward, which has read its inputs
                return method(root, *args, **kwargs)
            given = named_inputs(names, args, kwargs)
            refuse_given(anatomy, given)
            if gives_patches(anatomy, given, names[0]):
                return method(root, **frame_rows(root.aim, given, names[0]))
        return read_images(root, *args, **kwargs)

    return in_place_of(method, run)


def refuse_videos(base: type[nn.Module], name: str) -> Callable[..., Any]:
    """Return a method of a module inside the model that refuses 5-D videos."""
    return _reading(base, name, require_flat)


def is_video(images: Any) -> bool:
    """Return whether the first argument of a call is a video, not flat frames."""
    return isinstance(images, Tensor) and images.ndim == 5


def require_flat(module: nn.Module, images: Any) -> Any:
    """Return flat frames, or whatever else is not a video.

    Args:
        module: The module inside a wrapped model that was called.
        images: What it was called with.

    Raises:
        InputError: It is a 5-D video.
    """
    if is_video(images):
        raise InputError(
            f"this {type(module).__name__} is a part of a wrapped model and reads flat frames [B*T, C, H, W], got "
            f"{list(images.shape)}; call the wrapped model itself, or pass video.flatten(0, 1) of a [B, T, C, H, W]"
        )
    return images


class ImageReader(Patched):
    """A module inside the root that reads images or holds the blocks, such as the ``vit`` of a classifier.

    The specification is ``(blocked methods, methods that take images)``.
    """

    @classmethod
    def namespace(cls, base: type[nn.Module], spec: Any) -> dict[str, Any]:
        """Keep the signature of ``forward``; block what the anatomy names."""
        methods, image_methods = spec
        return {
            "forward": wrap_forward(base, cls.forward),
            **blocked_methods(base, methods),
            **methods_of(base, image_methods, refuse_videos),
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module on flat frames.

        Args:
            *args: The module's own arguments.
            **kwargs: The same by name.

        Raises:
            InputError: They begin with a 5-D video.
        """
        for images in (*args[:1], *kwargs.values()):
            require_flat(self, images)
        return super().forward(*args, **kwargs)


def inner_readers(paths: Sequence[str | None]) -> list[str]:
    """Return the paths of all modules between the root and others, outermost first.

    Args:
        paths: Paths of modules inside the root; None: there is no such module.
    """
    parts = [path.split(".") for path in paths if path is not None]
    found = {".".join(names[:end]): end for names in parts for end in range(1, len(names))}
    return sorted(found, key=found.__getitem__)


def _reading(
    base: type[nn.Module],
    name: str,
    read: Callable[[Any, Any], Any],
    explain: Callable[[Any, Any, RuntimeError], AIMError | None] = lambda *_: None,
) -> Callable[..., Any]:
    method = getattr(base, name)
    first = list(inspect.signature(method).parameters)[1]

    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        images = args[0] if args else kwargs.get(first)
        given = (read(self, images), *args[1:]) if args else ()
        try:
            return method(self, *given, **(kwargs if args else {**kwargs, first: read(self, images)}))
        except RuntimeError as error:
            told = explain(self, images, error)
            if told is None:
                raise
            raise told from error

    return in_place_of(method, run)
