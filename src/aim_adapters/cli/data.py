"""The videos of a command: a folder with a folder for each class, or a table of paths and labels."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from aim_adapters.video import VideoDataset

Data = Annotated[
    Path, typer.Argument(help="Videos: a folder with a folder for each class, or a CSV of paths and labels.")
]
Workers = Annotated[int | None, typer.Option(help="Processes that decode, for each device.", min=0)]
Nested = Annotated[bool, typer.Option("--nested", help="Also take videos from folders inside those of the classes.")]
AllowEmpty = Annotated[bool, typer.Option("--allow-empty", help="Accept classes without a video.")]
MaxSkipped = Annotated[float, typer.Option(help="Share of videos that may be missing or broken.", min=0.0)]


def open_videos(
    path: Path, frames: int, *, labels: Sequence[str] | None, nested: bool, allow_empty: bool
) -> VideoDataset:
    """Return the videos that a folder holds or a table lists.

    Args:
        path: The folder, or the table.
        frames: Frames of a clip.
        labels: Names of the classes, or None.
        nested: As in `VideoFolder`.
        allow_empty: As in `VideoFolder`.

    Raises:
        ConfigError: There is nothing there, or it is laid out in another way.
    """
    from aim_adapters.errors import ConfigError
    from aim_adapters.video import VideoFolder, VideoList

    path = path.expanduser()
    if path.is_dir():
        return VideoFolder(path, frames, labels=labels, nested=nested, allow_empty=allow_empty)
    if not path.exists():
        raise ConfigError(f"there is no folder and no table of videos at {str(path)!r}")
    if str(mimetypes.guess_type(path.name)[0]).startswith("video/"):
        raise ConfigError(
            f"{str(path)!r} is one video; expected a folder with a folder for each class, or a CSV of paths and labels"
        )
    return VideoList(path, frames, labels=labels)
