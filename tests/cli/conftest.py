"""Videos and a trained run, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.cases import MODEL, run, write_videos


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="session")
def trained(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch."""
    out = tmp_path_factory.mktemp("runs") / "mine"
    result = run("train", videos, *MODEL, "--epochs", 1, "--test", videos, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "top-1" in result.stdout
    assert "--no-pretrained" in result.stderr
    return out
