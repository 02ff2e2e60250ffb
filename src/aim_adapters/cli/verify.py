"""The command that checks this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from aim_adapters.cli.choices import complete_model
from aim_adapters.cli.models import build_image_model
from aim_adapters.cli.output import FAILED, Debug, Json, columns, command


def verify(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Image model to wrap, library:name or library:directory; by default a small random one.",
            autocompletion=complete_model,
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check what this machine computes.

    A wrapped image model must be itself, averaged over frames, and be given back to the bit. Every kernel that can run
    here is compared with the reference in float64, and installed packages with the versions that are needed. The exit
    code is 1 if something fails.
    """
    with command(as_json=as_json, debug=debug) as output:
        from aim_adapters.analysis import verify as verify_machine

        output.step("checking")
        image_model = None if model is None else build_image_model(model, image_size=None, pretrained=True)
        found = verify_machine(image_model)
        output.result(found.to_dict(), found.to_text(columns()))
        if not found.ok:
            raise typer.Exit(FAILED)
