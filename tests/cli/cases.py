"""A run of the command line in this process, and what it runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from aim_adapters.cli.app import app
from tests.video.videos import write

CLASSES = ("zoom in", "zoom out")
MODEL = (
    "--model", "timm:vit_tiny_patch16_224", "--no-pretrained", "--image-size", "32", "--frames", "2", "--layers", "11",
    "--workers", "0",
)  # fmt: skip


def run(*arguments: object) -> Any:
    """Run a command; the result has ``exit_code``, ``stdout`` and ``stderr``."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_videos(root: Path, each: int = 2) -> Path:
    """Write a folder of videos for each class."""
    for place, label in enumerate(CLASSES):
        for index in range(each):
            write(root / label / f"{index}.mp4", count=6, seed=10 * place + index)
    return root
