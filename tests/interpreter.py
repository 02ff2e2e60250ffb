"""Triton's interpreter, made to patch its language once a launch instead of at every call of a device function.

The search of that module's names for what to patch takes longer than what the functions of a kernel compute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triton.runtime import interpreter


class _Nothing:
    """What was patched by a function that found all of it patched."""

    def restore(self) -> None:
        """Leave everything."""


def patch_once_a_launch() -> None:
    """Change the interpreter; what kernels compute stays the same."""
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[int] = set()

    def patch_lang(function: Callable[..., Any]) -> Any:
        names = id(function.__globals__)
        if names in patched:
            return _Nothing()
        patched.add(names)
        return patch(function)

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        patched.clear()  # the last launch gave the language back
        return launch(self, *arguments, **options)

    interpreter._patch_lang = patch_lang
    interpreter.GridExecutor.__call__ = call
