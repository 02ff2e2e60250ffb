"""The commands that list what there is: recipes, and image models by name."""

from __future__ import annotations

import fnmatch
import shutil
from typing import Annotated, Any, NamedTuple

import typer

from aim_adapters.cli.output import Debug, Json, command
from aim_adapters.table import Table


class _Setting(NamedTuple):
    setting: str
    value: str | None


def _shown(value: Any) -> str | None:
    """Return a setting of a recipe in one line; None if there is nothing to show."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items() if item not in (None, [])) or None
    return None if value is None else str(value)


def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe, to show all of its settings.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the recipes, or show one."""
    with command(as_json=as_json, debug=debug) as output:
        from aim_adapters.recipes import get_recipe, list_recipes

        if name is not None:
            settings = get_recipe(name).to_dict()
            output.result(settings, _text(Table(_Setting(name, _shown(value)) for name, value in settings.items())))
            return
        rows = list_recipes()
        output.result([row._asdict() for row in rows], _text(rows))


def backbones(
    pattern: Annotated[
        str | None, typer.Argument(help="Part of a name, or a pattern with * and ?, such as '*clip*openai'.")
    ] = None,
    library: Annotated[
        str | None, typer.Option(help="timm, open_clip or torchvision; by default all that are installed.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List image models by name.

    These have published weights, and `aim-adapters train` takes them as --model.
    """
    with command(as_json=as_json, debug=debug) as output:
        from aim_adapters.backbones import list_models
        from aim_adapters.errors import ConfigError

        names = []
        for each in ("timm", "open_clip", "torchvision") if library is None else (library,):
            try:
                names += [f"{each}:{name}" for name in list_models(each)]
            except ModuleNotFoundError as error:
                if library is not None or error.name != each:
                    raise
        if library == "transformers":
            output.note("", "any repository on the Hub with a ViT, DeiT, DINOv2, CLIP or SigLIP of transformers can be "
                        "trained: --model transformers:user/name")  # fmt: skip
        elif pattern is not None:
            wanted = pattern.casefold() if set(pattern) & set("*?[") else f"*{pattern.casefold()}*"
            names = [name for name in names if _matches(name.casefold(), wanted)]
            if not names:
                raise ConfigError(f"no image model is like {pattern!r}; `aim-adapters backbones` lists all")
        output.result(names, "\n".join(names))


def _matches(name: str, pattern: str) -> bool:
    """Return whether a name is like a pattern, with its library or without."""
    return any(fnmatch.fnmatchcase(part, pattern) for part in (name, name.partition(":")[2]))


def _text(rows: Table[Any]) -> str:
    """Return a table for the terminal; a file or another program gets whole lines."""
    return rows.to_text(shutil.get_terminal_size((1000, 24)).columns)
