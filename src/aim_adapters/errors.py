"""Define every error this package raises on purpose.

All are children of `AIMError`, and of the built-in error a caller would expect, so that both
``except aim.AIMError`` and ``except ValueError`` work.
"""

import sys
import warnings


class AIMError(Exception):
    """Base of every error raised on purpose by this package."""


class ConfigError(AIMError, ValueError):
    """A setting that is wrong in itself, or does not fit the model."""


class InputError(AIMError, ValueError):
    """A video whose shape, layout or dtype the wrapped model cannot take."""


class StateError(AIMError, RuntimeError):
    """A call that does not fit the state of the model: wrapping twice, unwrapping what is not wrapped."""


class UnsupportedModelError(AIMError, ValueError):
    """A model, or a part of one, that cannot be adapted exactly."""


class UnsupportedKernelError(AIMError, RuntimeError):
    """An attention implementation that was asked for by name and cannot run here."""


class CheckpointError(AIMError, RuntimeError):
    """A checkpoint that is damaged, foreign, or does not fit the model."""


def warn(message: str) -> None:
    """Warn at the line outside this package that led here, however deep the call.

    Args:
        message: What to say.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


_INSIDE = {__name__.partition(".")[0], "contextlib"}
