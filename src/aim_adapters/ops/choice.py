"""Pick an implementation of attention by the name that was asked for, or by what can run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from aim_adapters.errors import ConfigError, UnsupportedKernelError


class Choice(NamedTuple):
    """An implementation and the reason it was chosen."""

    implementation: str
    reason: str


def by_name(requested: str, unfit: Callable[[], str | None]) -> Choice | None:
    """Pick what was asked for by its name, None for ``"auto"``. A name never falls back.

    Args:
        requested: ``"auto"``, ``"triton"``, ``"sdpa"`` or ``"eager"``.
        unfit: Says why the kernels cannot compute this, or None. Called for ``"triton"`` alone: what it looks at need
            not concern the others, nor a compiler that guards what was looked at.

    Raises:
        ConfigError: The name is unknown.
        UnsupportedKernelError: The kernels were asked for, and cannot compute this.
    """
    if requested not in ("auto", "triton", "sdpa", "eager"):
        raise ConfigError(f"attention must be 'auto', 'triton', 'sdpa' or 'eager', got {requested!r}")
    if requested == "auto":
        return None
    if requested == "triton" and (why := unfit()) is not None:
        raise UnsupportedKernelError(
            f"attention='triton' was asked for, but {why}; use 'auto', which falls back, 'sdpa' or 'eager'"
        )
    return Choice(requested, "asked for by name")


def automatic(unfit: str | None, device: str, *, exporting: bool) -> Choice:
    """Pick the kernels where they can run, and SDPA elsewhere.

    Args:
        unfit: Why the kernels cannot compute this, or None.
        device: Type of the device.
        exporting: The model is being exported, for a place that need not know our operators.
    """
    if unfit is not None:
        return Choice("sdpa", unfit)
    if device != "cuda":
        return Choice("sdpa", "Triton only interprets its kernels on this device")
    if exporting:
        return Choice("sdpa", "an exported model must run without this package")
    return Choice("triton", "reads and writes what the projections do, without a copy")
