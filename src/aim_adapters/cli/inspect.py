"""The command that says what a checkpoint holds."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Annotated

import typer

from aim_adapters.cli.output import FAILED, Debug, Json, columns, command


def inspect(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of a run, an adapter_model.safetensors, user/name on the Hub, or a reference's .pth."
        ),
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a checkpoint holds.

    Nothing in it is run, and no base model is fetched. The exit code is 1 if it is damaged, holds NaN or infinities,
    was never trained, or does not fit the base model that it names.
    """
    with command(as_json=as_json, debug=debug) as output:
        from aim_adapters.checkpoint import inspect_checkpoint
        from aim_adapters.convert import inspect_official_checkpoint
        from aim_adapters.storage import file_mode

        path = Path(source).expanduser()
        if stat.S_ISREG(file_mode(path)) and path.suffix != ".safetensors":
            found = inspect_official_checkpoint(path)
        else:
            found = inspect_checkpoint(path if file_mode(path) else source)
        output.result(found.to_dict(), found.to_text(columns()))
        if found.problems:
            raise typer.Exit(FAILED)
