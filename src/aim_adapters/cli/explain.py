"""The command that shows where a model looks in a video, as one HTML file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from aim_adapters.cli.models import BaseModel, Device, default_device, load_trained
from aim_adapters.cli.output import Debug, Json, command


def require_blocks(text: str | None) -> str | None:
    """Return indices of blocks as they were given.

    Args:
        text: Such as ``"0,6,-1"``, or None.

    Raises:
        typer.BadParameter: They are no such indices.
    """
    if text is not None and not re.fullmatch(r"-?\d{1,4}(,-?\d{1,4})*", text):
        raise typer.BadParameter(f"expected indices of blocks, such as 0,6,-1; got {text!r}")
    return text


def explain(
    file: Annotated[Path, typer.Argument(help="A video, or a folder of pictures.")],
    adapters: Annotated[str, typer.Option(help="Folder of a run, or user/name on the Hugging Face Hub.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")],
    target: Annotated[
        str | None, typer.Option(help="The class to explain, by name or index; by default the most probable.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many classes to show.", min=1)] = 5,
    blocks: Annotated[
        str | None, typer.Option(help="Blocks to show: 0,6,-1; by default all.", callback=require_blocks)
    ] = None,
    variants: Annotated[
        bool, typer.Option("--variants/--no-variants", help="Also show it without adapters, and with some of them.")
    ] = True,
    checks: Annotated[
        bool, typer.Option("--checks/--no-checks", help="Test the order of frames, and what removing patches does.")
    ] = True,
    device: Device = None,
    base_model: BaseModel = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show where a model looks in a video.

    The report is one HTML file that needs no network: open it in a browser, or send it to somebody.
    """
    with command(as_json=as_json, debug=debug) as output:
        from aim_adapters.analysis import explain as explain_video
        from aim_adapters.clip_spec import clip_spec
        from aim_adapters.errors import ConfigError

        if not file.expanduser().exists():
            raise ConfigError(f"there is no file {str(file)!r}")
        if out.expanduser().is_dir():  # which would be known only after minutes
            raise ConfigError(
                f"--out must be a file, and {str(out)!r} is a folder; choose {str(out / 'report.html')!r}"
            )
        model = load_trained(adapters, base_model).to(default_device(device))
        chosen: int | str | None = target
        if target is not None and target.isdecimal() and target not in (clip_spec(model).labels or ()):
            chosen = int(target)
        explanation = explain_video(
            model,
            file,
            top=top,
            variants=variants,
            blocks=None if blocks is None else [int(block) for block in blocks.split(",")],
            target=chosen,
            checks=checks,
            progress=output.progress,
        )
        explanation.save(out)
        predictions = {
            name: [{"label": label, "probability": probability} for label, probability in answers]
            for name, answers in explanation.predictions.items()
        }
        document = {"file": str(file), "report": str(out), "target": explanation.target, "predictions": predictions}
        output.result(document, f"{explanation!r}\nThe report is in {out}")
