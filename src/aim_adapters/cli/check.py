"""The command that looks at every video before training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aim_adapters.cli.output import FAILED, Debug, Json, command


def check(
    folder: Annotated[Path, typer.Argument(help="A folder, searched through all its folders, or one video.")],
    full: Annotated[bool, typer.Option("--full", help="Decode every frame, not three of each video.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; by default one for each core.", min=0)] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Look for broken and slow videos.

    Every video of a folder is opened, some of its frames are decoded, and it is said what makes reading slow.
    The exit code is 1 if a video cannot be read.
    """
    with command(as_json=as_json, debug=debug) as output:
        from aim_adapters.video import check_videos

        report = check_videos(folder, full=full, workers=workers, progress=output.progress)
        output.result(report.to_dict(), str(report))
        if not report.ok:
            raise typer.Exit(FAILED)
