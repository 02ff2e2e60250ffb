"""Choice of an implementation of an operator, by the name that was asked for or by what can run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from aim_adapters.errors import ConfigError, UnsupportedKernelError


class Choice(NamedTuple):
    """An implementation and the reason it was chosen."""

    implementation: str
    reason: str


def by_name(
    requested: str,
    unsupported: Callable[[], str | None],
    *,
    setting: str = "attention",
    plain: tuple[str, ...] = ("sdpa", "eager"),
) -> Choice | None:
    """Choose the implementation of a name, or return None for ``"auto"``. A name never falls back.

    Args:
        requested: ``"auto"``, ``"triton"`` or one of ``plain``.
        unsupported: Returns the reason why the kernels cannot compute this, or None if they can. Called for
            ``"triton"`` alone: the other implementations need not depend on what it reads, and a compiler guards
            whatever was read.
        setting: Name of the argument that was given, for errors.
        plain: Names of the other implementations, two at most.

    Raises:
        ConfigError: The name is unknown.
        UnsupportedKernelError: The kernels were asked for, and cannot compute this.
    """
    if requested not in ("auto", "triton", *plain):
        known = ", ".join(map(repr, ("auto", "triton", *plain[:-1])))
        raise ConfigError(f"{setting} must be {known} or {plain[-1]!r}, got {requested!r}")
    if requested == "auto":
        return None
    if requested == "triton" and (reason := unsupported()) is not None:
        others = " ".join([*map(repr, plain[:-1]), f"or {plain[-1]!r}"])
        raise UnsupportedKernelError(
            f"{setting}='triton' was asked for, but {reason}; use 'auto', which falls back, {others}"
        )
    return Choice(requested, "asked for by name")


def automatic(unsupported: str | None, device: str, *, exporting: bool, plain: str = "sdpa") -> Choice:
    """Choose the kernels where they can run, and a plain implementation elsewhere.

    Args:
        unsupported: The reason why the kernels cannot compute this, or None if they can.
        device: Type of the device.
        exporting: Whether the model is being exported, to run where our operators may not be known.
        plain: Name of the implementation elsewhere.
    """
    if unsupported is not None:
        return Choice(plain, unsupported)
    if device != "cuda":
        return Choice(plain, "Triton only interprets its kernels on this device")
    if exporting:
        return Choice(plain, "an exported model must run without this package")
    return Choice("triton", "reads and writes what the projections do, without a copy")
