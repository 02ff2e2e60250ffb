"""Messages of the library in the terms of the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

import aim_adapters
from aim_adapters.cli.app import app
from aim_adapters.cli.wording import _ADVICE, OPTIONS, in_options
from tests.cli.cases import MODEL, run


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("remove it, or pass allow_empty=True", "remove it, or pass --allow-empty"),
        ("train with recipe='small-data'", "train with --recipe small-data"),
        ("try batch_size=4 with accumulate=2: the same", "try --batch-size 4 with --accumulate 2: the same"),
        ("try aim.set_execution(model, memory='low'); or", "try --memory low; or"),
        ("with num_frames=8, or call aim.set_num_frames(model, 4)", "with --frames 8"),
        ("resume=False, but", "--no-resume, but"),
        ("pass temporal='conv' or temporal='both', or leave", "pass --temporal conv or --temporal both, or leave"),
        ("learning_rate must be a number", "--learning-rate must be a number"),
        ("ema must be a number", "--ema must be a number"),
        # What is not an argument stays: files, classes, plain words.
        ("runs/batch_size/a: 'max_skipped' in max_skipped.mp4", "runs/batch_size/a: 'max_skipped' in max_skipped.mp4"),
        ("memory ran out; layers must be its own", "memory ran out; layers must be its own"),
    ],
)  # fmt: skip
def test_arguments_become_options(message: str, shown: str) -> None:
    assert in_options(message) == shown


def test_the_options_exist() -> None:
    commands: Any = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    there = {option for command in commands.values() for parameter in command.params for option in parameter.opts}
    assert set(OPTIONS.values()) <= there


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in _ADVICE])
def test_the_advice_is_what_the_library_says(pattern: str) -> None:
    room = Path(aim_adapters.__file__).parent
    files = [file.read_text(encoding="utf-8") for file in room.rglob("*.py") if file.parent.name != "cli"]
    # Messages go over several lines of source.
    assert any(re.search(pattern, re.sub(r'"\s*f?"', "", text)) for text in files)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--learning-rate", "nan"), "error: --learning-rate must be"),
        (("--recipe", "k400-clip-vit-b16-8f"), "Choose the --model that it is for, or train with --recipe small-data"),
        (("--resume",), "leave out --resume to begin"),
        (("--cache-gib", 1), "error: --cache-gib is for the baselines 'probe' and"),
    ],
)
def test_failures_name_options(videos: Path, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    result = run("train", videos, *MODEL, *arguments, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert said in result.stderr
