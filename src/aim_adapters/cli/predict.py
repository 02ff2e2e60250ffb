"""The command that classifies videos."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any

import typer

from aim_adapters.cli.models import BaseModel, Device, Precision, Source, Views, default_device, load_trained
from aim_adapters.cli.output import FAILED, Debug, Json, command


def predict(
    source: Source,
    files: Annotated[list[Path], typer.Argument(help="Videos, or folders of videos.")],
    top: Annotated[int, typer.Option(help="How many classes to show.", min=1)] = 5,
    views: Views = "3x1",
    device: Device = None,
    precision: Precision = None,
    base_model: BaseModel = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Classify videos.

    The most probable classes of each are shown, averaged over views.
    The exit code is 1 if one of them cannot be read; the others are classified.
    """
    with command(as_json=as_json, debug=debug) as output:
        from aim_adapters.errors import ConfigError, VideoError
        from aim_adapters.video import predict as predict_video

        if missing := [str(file) for file in files if not file.expanduser().exists()]:
            raise ConfigError(
                f"there is no file {missing[0]!r}" + f", nor {len(missing) - 1} more" * (len(missing) > 1)
            )
        model = load_trained(source, base_model).to(default_device(device))
        found: list[dict[str, Any]] = []
        failed: list[dict[str, str]] = []
        for file in itertools.chain.from_iterable(map(_videos, files)):
            try:
                answer = predict_video(model, file, top, views=views, precision=precision)
            except VideoError as error:
                reason = f"{error}; nor are there videos in it" if file.is_dir() else str(error)
                output.note("error", reason)
                failed.append({"file": str(file), "reason": reason})
                continue
            assert isinstance(answer, list)  # of one video
            classes = [{"label": label, "probability": probability} for label, probability in answer]
            found.append({"file": str(file), "classes": classes})
            if not as_json:
                output.result(None, _lines(found[-1]))
        if as_json:
            output.result({"predictions": found, "failed": failed}, "")
        if failed:
            raise typer.Exit(FAILED)


def _videos(path: Path) -> list[Path]:
    """Return the videos of a folder; a file, or a folder of pictures, is one video itself."""
    from aim_adapters.video import list_videos

    path = path.expanduser()
    return list_videos(path) or [path]


def _lines(row: dict[str, Any]) -> str:
    return "\n".join([row["file"], *(f"  {c['probability']:6.1%}  {c['label']}" for c in row["classes"])])
