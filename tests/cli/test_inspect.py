"""`inspect`, of what people have on their disks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.cli.cases import CLASSES, run
from tests.convert.cases import clip_file


def test_a_run_and_its_files_and_a_reference_are_told(trained: Path, tmp_path: Path) -> None:
    for source in (trained, trained / "best", trained / "adapter_model.safetensors"):
        result = run("inspect", source, "--json")
        assert result.exit_code == 0, result.stderr
        facts = json.loads(result.stdout)
        assert facts["clip"]["labels"] == list(CLASSES)
        assert facts["loads"] is True
    torch.save({"state_dict": clip_file()}, tmp_path / "reference.pth")
    result = run("inspect", tmp_path / "reference.pth")
    assert result.exit_code == 0, result.stderr
    assert "CLIP ViT of the AIM reference" in result.stdout


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nowhere.pth", None, "is no file or directory here"),
        ("text.pth", b"text", "was not made by torch.save"),
        ("adapter_model.safetensors", b"text", "is damaged"),
        ("empty/x", b"", "is damaged or was not made by torch.save: ValueError: it is empty"),
    ],
)
def test_what_is_no_checkpoint_is_said(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    file = tmp_path / name
    if content is not None:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    result = run("inspect", file)
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr
