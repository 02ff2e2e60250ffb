"""Values of options, checked while the command line is read: a wrong one is wrong usage, exit code 2."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

LAYERS = ("all", "bottom_half", "top_half", "alternate")


def completed(*words: str) -> Callable[[str], list[str]]:
    """Return a completion of a value that is one of several words.

    Args:
        *words: The words.
    """
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def complete_recipe(incomplete: str) -> list[str]:
    """Return the names of recipes that begin so.

    Args:
        incomplete: What was typed.
    """
    from aim_adapters.recipes import list_recipes

    return [row.name for row in list_recipes() if row.name.startswith(incomplete)]


# Not the names of models, as the libraries that know them take seconds to import.
complete_model = completed("open_clip:", "timm:", "torchvision:", "transformers:")


def one_of(*choices: str) -> Callable[[str | None], str | None]:
    """Return a check that a value is one of several words, or not given.

    Args:
        *choices: The words.
    """

    def check(value: str | None) -> str | None:
        if value is not None and value not in choices:
            raise typer.BadParameter(f"expected one of {', '.join(choices)}, got {value!r}")
        return value

    return check


def choice(help: str, *words: str) -> Any:
    """Return an option that is one of several words, which the shell completes.

    Args:
        help: Its help.
        *words: The words.
    """
    return typer.Option(help=help, callback=one_of(*words), autocompletion=completed(*words))


def require_views(value: str) -> str:
    """Return clips x crops if they are that.

    Args:
        value: Such as ``"3x1"``.

    Raises:
        typer.BadParameter: They are not.
    """
    if not re.fullmatch(r"[1-9]\d{0,3}x[1-9]\d{0,3}", value):
        raise typer.BadParameter(f"expected clips x crops, such as 3x1, got {value!r}")
    return value


def require_table_file(value: Path | None) -> Path | None:
    """Return the path of a table if its kind is known.

    Args:
        value: The path, or None.

    Raises:
        typer.BadParameter: It is of another kind.
    """
    if value is not None and value.suffix not in (".csv", ".parquet"):
        raise typer.BadParameter(f"expected a file that ends in .csv or .parquet, got {str(value)!r}")
    return value


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Return height and width.

    Args:
        text: Such as ``"224"`` or ``"192x320"``, or None.

    Raises:
        typer.BadParameter: It is of another form.
    """
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,3})(?:x([1-9]\d{0,3}))?", text)
    if not found:
        raise typer.BadParameter(f"expected pixels, such as 224, or height x width, 192x320; got {text!r}")
    return int(found[1]), int(found[2] or found[1])


def require_size(text: str | None) -> str | None:
    """Return a size as it was given, if `parse_size` understands it.

    Args:
        text: The size.
    """
    parse_size(text)
    return text


def parse_layers(text: str) -> str | list[int]:
    """Return layers as `wrap_image_model` takes them.

    Args:
        text: A word, or indices with commas.

    Raises:
        typer.BadParameter: It is of another form.
    """
    if text in LAYERS:
        return text
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise typer.BadParameter(f"expected one of {', '.join(LAYERS)}, or indices of blocks, 8,9,10; got {text!r}")
    return [int(part) for part in text.split(",")]


def require_layers(text: str | None) -> str | None:
    """Return layers as they were given, if `parse_layers` understands them.

    Args:
        text: The layers, or None.
    """
    if text is not None:
        parse_layers(text)
    return text
