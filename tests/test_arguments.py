"""Whatever a value is, an error shows it briefly; what is meant to be accepted is, as Python's own types."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from aim_adapters.arguments import optional_text, read_items, require_integer, require_number, require_texts, shown
from aim_adapters.errors import ConfigError
from tests.misuse_cases import WRONG, Evil

SOME = {"expected": "some things"}


@pytest.mark.parametrize("kind", WRONG)
def test_every_value_is_shown_briefly(kind: str) -> None:
    text = shown(WRONG[kind]())
    assert text and len(text) <= 400
    text.encode()


def test_long_values_show_both_ends() -> None:
    assert shown("a" * 5000 + "z").startswith("'aaa") and shown("a" * 5000 + "z").endswith("z'")
    assert shown(10**5000) == "<an integer of 16610 bits>"
    assert shown([Evil()]).startswith("[<Evil instance at")
    assert shown(type("list", (Evil,), {})()) == "<list>"
    assert shown({"a": [1, 2.5, None, "b"]}) == "{'a': [1, 2.5, None, 'b']}"


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers_of_every_kind_become_python_s(value: Any) -> None:
    assert type(require_integer("x", value, low=3)) is int


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1), np.int8(1), Fraction(1)])
def test_numbers_of_every_kind_become_python_s(value: Any) -> None:
    assert type(require_number("x", value, low=1.0)) is float


@pytest.mark.parametrize("value", [[1, 2], (1, 2), iter([1, 2]), np.array([1, 2]), torch.tensor([1, 2]), range(1, 3)])
def test_items_are_read_in_their_order(value: Any) -> None:
    assert read_items(value, "x must be some things") == [1, 2]


def test_what_has_no_order_or_no_end_has_no_items() -> None:
    for value in ({1, 2}, {1: 2}, "12", b"12", iter(int, 1), 3, None, Evil()):
        with pytest.raises(ConfigError, match="x must be some things, got "):
            read_items(value, "x must be some things")


def test_texts_become_python_s() -> None:
    assert optional_text("x", None) is None and type(optional_text("x", np.str_("a"))) is str
    assert [type(text) for text in require_texts("x", ["a", np.str_("b")], **SOME)] == [str, str]
    with pytest.raises(ConfigError, match=r"each of x must be text that UTF-8 can hold, got '\\ud800'"):
        require_texts("x", ["a", "\ud800"], **SOME)
