"""The errors that this package raises on purpose, and its warnings.

Every error derives from `AIMError` and from the built-in error that a caller would expect, so that both
``except aim.AIMError`` and ``except ValueError`` work.
"""

import sys
import warnings


class AIMError(Exception):
    """The base class of every error that this package raises on purpose."""


class ConfigError(AIMError, ValueError):
    """A setting that is invalid, or does not fit the model."""


class InputError(AIMError, ValueError):
    """A video whose shape, layout or dtype the wrapped model does not accept."""


class StateError(AIMError, RuntimeError):
    """A call that the model's state does not allow, such as wrapping it twice."""


class UnsupportedModelError(AIMError, ValueError):
    """A model, or a part of one, that cannot be adapted exactly."""


class UnsupportedKernelError(AIMError, RuntimeError):
    """An implementation that was chosen by name and cannot run here."""


class CheckpointError(AIMError, RuntimeError):
    """A checkpoint that is damaged, of another library, or does not fit the model."""


class VideoError(AIMError, RuntimeError):
    """A video that cannot be read or written; the message begins with its name."""


class TrainingError(AIMError, RuntimeError):
    """A training run that cannot go on."""


def warn(message: str) -> None:
    """Issue a warning that points at the line of the caller's own that led here, however deep the call.

    Args:
        message: Text of the warning.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


# Packages that call a model in place of its owner.
_INSIDE = {__name__.partition(".")[0], "contextlib", "torch", "open_clip", "timm", "transformers"}
