"""Choice of an implementation of attention, by the name that was asked for or by what can run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from aim_adapters.errors import ConfigError, UnsupportedKernelError


class Choice(NamedTuple):
    """An implementation and the reason it was chosen."""

    implementation: str
    reason: str


def by_name(requested: str, unsupported: Callable[[], str | None]) -> Choice | None:
    """Choose the implementation of a name, or return None for ``"auto"``. A name never falls back.

    Args:
        requested: ``"auto"``, ``"triton"``, ``"sdpa"`` or ``"eager"``.
        unsupported: Returns the reason why the kernels cannot compute this, or None if they can. Called for
            ``"triton"`` alone: the other implementations need not depend on what it reads, and a compiler guards
            whatever was read.

    Raises:
        ConfigError: The name is unknown.
        UnsupportedKernelError: The kernels were asked for, and cannot compute this.
    """
    if requested not in ("auto", "triton", "sdpa", "eager"):
        raise ConfigError(f"attention must be 'auto', 'triton', 'sdpa' or 'eager', got {requested!r}")
    if requested == "auto":
        return None
    if requested == "triton" and (reason := unsupported()) is not None:
        raise UnsupportedKernelError(
            f"attention='triton' was asked for, but {reason}; use 'auto', which falls back, 'sdpa' or 'eager'"
        )
    return Choice(requested, "asked for by name")


def automatic(unsupported: str | None, device: str, *, exporting: bool) -> Choice:
    """Choose the kernels where they can run, and SDPA elsewhere.

    Args:
        unsupported: The reason why the kernels cannot compute this, or None if they can.
        device: Type of the device.
        exporting: Whether the model is being exported, to run where our operators may not be known.
    """
    if unsupported is not None:
        return Choice("sdpa", unsupported)
    if device != "cuda":
        return Choice("sdpa", "Triton only interprets its kernels on this device")
    if exporting:
        return Choice("sdpa", "an exported model must run without this package")
    return Choice("triton", "reads and writes what the projections do, without a copy")
