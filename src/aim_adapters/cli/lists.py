"""The commands that list what there is: recipes, and image models by name."""

from __future__ import annotations

import fnmatch
from typing import Annotated

import typer

from aim_adapters.cli.choices import complete_recipe, completed
from aim_adapters.cli.output import Debug, Json, as_lines, columns, command


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="A recipe, to show all of its settings.", autocompletion=complete_recipe)
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the recipes, or show one."""
    with command(as_json=as_json, debug=debug) as output:
        from aim_adapters.recipes import get_recipe, list_recipes

        if name is not None:
            settings = get_recipe(name).to_dict()
            output.result(settings, as_lines(settings))
            return
        rows = list_recipes()
        output.result([row._asdict() for row in rows], rows.to_text(columns()))


def backbones(
    pattern: Annotated[
        str | None, typer.Argument(help="Part of a name, or a pattern with * and ?, such as '*clip*openai'.")
    ] = None,
    library: Annotated[
        str | None,
        typer.Option(
            help="timm, open_clip or torchvision; by default all that are installed.",
            autocompletion=completed("open_clip", "timm", "torchvision", "transformers"),
        ),
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
