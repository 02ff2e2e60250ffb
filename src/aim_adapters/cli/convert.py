"""The command that converts a checkpoint of the AIM reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aim_adapters.cli.choices import complete_model
from aim_adapters.cli.models import DEFAULT_MODEL, build_image_model
from aim_adapters.cli.output import Debug, Json, command


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth of the reference implementation.")],
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    base_model: Annotated[
        str,
        typer.Option(
            help="The image model that it adapts, library:name or library:directory.", autocompletion=complete_model
        ),
    ] = DEFAULT_MODEL,
    labels: Annotated[
        Path | None, typer.Option(help="Text file with a class's name on each line, in the order of the outputs.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Frames of the video between two of a clip; by default uniform.", min=1)
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="Factor on the joint adapter; by default as in the reference's configs.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Convert a checkpoint of the reference.

    Its weights and its function are compared with those of the image model first. The other commands then take the
    folder, and so do load_video_model and the Hub.
    """
    with command(as_json=as_json, debug=debug) as output:
        from aim_adapters.convert import convert_official_checkpoint, inspect_official_checkpoint
        from aim_adapters.errors import CheckpointError
        from aim_adapters.storage import WEIGHTS_NAME

        source, folder = checkpoint.expanduser(), out.expanduser()
        if (folder / WEIGHTS_NAME).exists():
            raise CheckpointError(f"{folder} holds adapters already; choose another folder")
        found = inspect_official_checkpoint(source)  # before an image model is built for nothing
        if found.problems:
            raise CheckpointError(f"{source}: {found.problems[0]}")
        names = None if labels is None else _read_labels(labels.expanduser(), found.settings["num_classes"])
        output.step(f"building {base_model}")
        model = build_image_model(base_model, image_size=None, pretrained=True)
        output.step("comparing it with the checkpoint")
        convert_official_checkpoint(model, source, folder, frame_stride=stride, labels=names, scale=scale)
        facts = {"out": str(folder), "base_model": base_model, "settings": found.settings, "labels": names}
        if names is None:
            output.note("", "it has no names of classes, so that predictions show their index; --labels gives them")
        output.result(facts, f"written to {folder}")


def _read_labels(file: Path, count: int) -> list[str]:
    """Return the names of classes in a text file.

    Raises:
        ConfigError: There is no such file, it is no text, or it has not one line for each class.
    """
    from aim_adapters.errors import ConfigError

    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--labels {file} cannot be read as text: {error}") from error
    if len(names) != count or len(set(names)) != count:
        different = f", {len(set(names))} of them different" if len(set(names)) != len(names) else ""
        raise ConfigError(f"--labels {file} must have a name on each of {count} lines, got {len(names)}{different}")
    return names
