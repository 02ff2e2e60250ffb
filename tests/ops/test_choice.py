"""A name is what runs or an error; what it does not need is not looked at."""

from __future__ import annotations

import pytest

from aim_adapters.errors import ConfigError, UnsupportedKernelError
from aim_adapters.ops.choice import Choice, automatic, by_name


def unasked() -> str | None:
    raise AssertionError("the kernels were not asked for")


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_a_plain_implementation_asks_nothing_of_the_machine(name: str) -> None:
    assert by_name(name, unasked) == Choice(name, "asked for by name")


def test_auto_is_no_name() -> None:
    assert by_name("auto", unasked) is None


def test_the_kernels_run_or_say_why_not() -> None:
    assert by_name("triton", lambda: None) == Choice("triton", "asked for by name")
    with pytest.raises(UnsupportedKernelError, match="'triton' was asked for, but the moon is full; use 'auto', which"):
        by_name("triton", lambda: "the moon is full")


def test_other_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'auto', 'triton', 'sdpa' or 'eager', got 'flash'"):
        by_name("flash", unasked)


@pytest.mark.parametrize(
    ("unfit", "device", "exporting", "implementation", "reason"),
    [
        (None, "cuda", False, "triton", "without a copy"),
        ("the moon is full", "cuda", False, "sdpa", "the moon is full"),
        (None, "cpu", False, "sdpa", "only interprets"),
        (None, "cuda", True, "sdpa", "an exported model"),
    ],
)
def test_automatic(unfit: str | None, device: str, exporting: bool, implementation: str, reason: str) -> None:
    choice = automatic(unfit, device, exporting=exporting)
    assert choice.implementation == implementation and reason in choice.reason
