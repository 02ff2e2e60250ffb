"""Errors are children of AIMError and of the built-in error a caller would expect."""

from __future__ import annotations

import inspect

import pytest

import aim_adapters as aim
from aim_adapters import errors

PARENTS: dict[str, type[Exception]] = {
    "CheckpointError": RuntimeError,
    "ConfigError": ValueError,
    "InputError": ValueError,
    "StateError": RuntimeError,
    "TrainingError": RuntimeError,
    "UnsupportedKernelError": RuntimeError,
    "UnsupportedModelError": ValueError,
    "VideoError": RuntimeError,
}


def defined() -> dict[str, type]:
    return {name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__}


def test_every_error_is_known_here() -> None:
    assert set(defined()) == {*PARENTS, "AIMError"}


@pytest.mark.parametrize(("name", "parent"), PARENTS.items())
def test_bases(name: str, parent: type[Exception]) -> None:
    assert getattr(errors, name).__bases__ == (errors.AIMError, parent)


def test_base_is_neither_a_value_nor_a_runtime_error() -> None:
    assert errors.AIMError.__bases__ == (Exception,)


@pytest.mark.parametrize("name", ["AIMError", *PARENTS])
def test_public_errors_are_the_same_classes(name: str) -> None:
    assert getattr(aim, name) is getattr(errors, name)


@pytest.mark.parametrize("cls", defined().values(), ids=lambda cls: cls.__name__)
def test_each_says_when_it_is_raised(cls: type) -> None:
    assert cls.__doc__
    assert cls.__doc__ not in {base.__doc__ for base in cls.__mro__[1:]}
