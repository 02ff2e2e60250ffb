"""Arguments of public functions: checked for kind and range by name, and shown in errors whatever they are."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from aim_adapters.errors import ConfigError

# Far beyond any use, and small enough that a product of sizes stays a size: settings also come from files.
MOST = 2**31 - 1
# What the iterator or the path of a caller's own class may raise.
_OWN_ERRORS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class _Short(reprlib.Repr):
    """A bounded ``repr`` that never raises: of a long value it shows both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 160

    def repr_int(self, value: int, level: int) -> str:
        """Show an integer, which may have more digits than Python prints."""
        bits = value.bit_length()
        return super().repr_int(value, level) if bits < 2**12 else f"<an integer of {bits} bits>"


def shown(value: object) -> str:
    """Return a value as an error shows it: short, whatever it is.

    Args:
        value: Anything.
    """
    try:
        return _Short().repr(value)[:400]
    except _OWN_ERRORS:  # a class that has the name of a built-in one, and is none
        return f"<{type(value).__name__}>"


def require_integer(name: str, value: object, *, low: int, high: int = MOST) -> int:
    """Return an argument that is an integer, also one of NumPy's, as Python's.

    Args:
        name: Name of the argument.
        value: Its value.
        low: The least that it may be.
        high: The most that it may be.

    Raises:
        ConfigError: It is of another kind, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name} must be an integer >= {low}, got {shown(value)} of type {type(value).__name__}")
    number = int(value)
    if number < low:
        raise ConfigError(f"{name} must be an integer >= {low}, got {shown(value)}")
    if number > high:
        raise ConfigError(f"{name} must be at most {high}, got {shown(value)}")
    return number


def require_number(
    name: str, value: object, *, low: float = -math.inf, high: float = math.inf, open_low: bool = False
) -> float:
    """Return an argument that is a finite number, also one of NumPy's, as Python's.

    Args:
        name: Name of the argument.
        value: Its value.
        low: The least that it may be.
        high: What it must be less than.
        open_low: Whether it must be more than ``low``.

    Raises:
        ConfigError: It is of another kind, NaN, infinite or out of range.
    """
    bounds = f"a finite number {'>' if open_low else '>='} {low}" if low > -math.inf else "a finite number"
    bounds += f" and < {high}" if high < math.inf else ""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(f"{name} must be {bounds}, got {shown(value)} of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond the range of float
        number = math.inf
    if not math.isfinite(number) or number < low or (open_low and number == low) or number >= high:
        raise ConfigError(f"{name} must be {bounds}, got {shown(value)}")
    return number


def require_numbers(
    name: str, value: object, *, count: int, expected: str, low: float = -math.inf, open_low: bool = False
) -> list[float]:
    """Return an argument that is a list of finite numbers.

    Args:
        name: Name of the argument.
        value: Its value.
        count: How many it must be.
        expected: What it should be, for the message.
        low: The least that each may be.
        open_low: Whether each must be more than ``low``.

    Raises:
        ConfigError: It is none.
    """
    refusal = f"{name} must be {expected}"
    try:
        numbers = [require_number(name, item, low=low, open_low=open_low) for item in read_items(value, refusal)]
    except ConfigError as error:
        raise ConfigError(f"{refusal}, got {shown(value)}") from error
    if len(numbers) != count:
        raise ConfigError(f"{refusal}, got {shown(value)}")
    return numbers


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse an argument that is none of a few words.

    Args:
        name: Name of the argument.
        value: Its value.
        choices: The words.

    Raises:
        ConfigError: It is another one, or no string.
    """
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}, got {shown(value)}")


def require_flags(**values: object) -> None:
    """Refuse arguments that are neither True nor False; ``"no"`` and arrays would count as true, or raise.

    Args:
        values: The arguments by name.

    Raises:
        ConfigError: One is of another kind.
    """
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be True or False, got {shown(value)}")


def require_string(name: str, value: object, *, expected: str = "a string") -> str:
    """Return an argument that is a string, also one of NumPy's, as Python's; names of files may be no valid UTF-8.

    Args:
        name: Name of the argument.
        value: Its value.
        expected: What it should be, for the message.

    Raises:
        ConfigError: It is not a string.
    """
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be {expected}, got {shown(value)}")
    return str(value)


def require_text(name: str, value: object, *, expected: str = "a string") -> str:
    """Return an argument that is text which a file can hold, also one of NumPy's, as Python's.

    Args:
        name: Name of the argument.
        value: Its value.
        expected: What it should be, for the message.

    Raises:
        ConfigError: It is not a string, or has lone surrogates.
    """
    text = require_string(name, value, expected=expected)
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ConfigError(f"{name} must be text that UTF-8 can hold, got {shown(value)}")
    return text


def optional_text(name: str, value: object) -> str | None:
    """Return an argument that is text as `require_text` does, or None.

    Args:
        name: Name of the argument.
        value: Its value.

    Raises:
        ConfigError: It is neither None nor text that a file can hold.
    """
    return None if value is None else require_text(name, value)


def require_texts(name: str, value: object, *, expected: str) -> list[str]:
    """Return an argument that is a list of texts.

    Args:
        name: Name of the argument.
        value: Its value.
        expected: What it should be, for the message.

    Raises:
        ConfigError: It is none.
    """
    refusal = f"{name} must be {expected}"
    items = read_items(value, refusal)
    if not isinstance(value, Sequence) or not all(isinstance(item, str) for item in items):
        raise ConfigError(f"{refusal}, got {shown(value)}")
    return [require_text(f"each of {name}", item) for item in items]


def require_path(name: str, value: object, *, expected: str = "a path") -> Path:
    """Return an argument that is a path.

    Args:
        name: Name of the argument.
        value: Its value.
        expected: What it should be, for the message.

    Raises:
        TypeError: It is not a path.
    """
    try:
        return Path(value)  # type: ignore[arg-type]
    except _OWN_ERRORS as error:
        raise TypeError(f"{name} must be {expected}, got {shown(value)} of type {type(value).__name__}") from error


def read_items(value: object, refusal: str, *, most: int = 2**18) -> list[Any]:
    """Return the items of a list or of another iterable in a definite order, which a set or a string is not meant for.

    Args:
        value: An argument.
        refusal: What it should be, for the message: "x must be …".
        most: Number of items that is never exceeded.

    Raises:
        ConfigError: It is not an iterable, has too many items, or raises an error of its own.
    """
    try:
        if isinstance(value, Iterable) and not isinstance(value, (str, bytes, AbstractSet, Mapping)):
            # Of a tensor or an array, Python's own numbers.
            items = list(islice(value.tolist() if hasattr(value, "tolist") else value, most + 1))
            if len(items) <= most:
                return items
    except _OWN_ERRORS as error:
        raise ConfigError(f"{refusal}, got {shown(value)}, which cannot be read") from error
    raise ConfigError(f"{refusal}, got {shown(value)}")
