"""Define every error this package raises on purpose.

All are children of `AIMError`, and of the built-in error a caller would expect, so that both
``except aim.AIMError`` and ``except ValueError`` work.
"""


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
