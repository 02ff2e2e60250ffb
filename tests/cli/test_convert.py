"""`convert`: what is asked of the library, and what is refused before a model is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tests.cli.cases import run
from tests.convert.cases import clip_file


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    torch.save({"state_dict": clip_file()}, tmp_path / "reference.pth")
    return tmp_path / "reference.pth"


def test_labels_are_handed_on(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("aim_adapters.cli.convert.build_image_model", lambda name, **_: name)
    monkeypatch.setattr("aim_adapters.convert.convert_official_checkpoint", lambda *a, **facts: given.update(facts))
    labels = reference.with_name("labels.txt")
    labels.write_text("".join(f"{name}\n" for name in "abcdefg"))
    out = reference.with_name("out")
    result = run("convert", reference, out, "--base-model", "timm:x", "--labels", labels, "--stride", 16)
    assert result.exit_code == 0, result.stderr
    assert given == {"frame_stride": 16, "labels": list("abcdefg"), "scale": None}
    labels.write_text("a\nb\n")
    result = run("convert", reference, out, "--labels", labels)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "must have a name on each of 7 lines, got 2" in result.stderr


def test_a_wrong_base_is_refused_and_nothing_is_written(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object, **__: object) -> torch.nn.Module:
        return timm.create_model("vit_tiny_patch16_224", img_size=32)

    monkeypatch.setattr("aim_adapters.cli.convert.build_image_model", build)
    out = reference.with_name("out")
    result = run("convert", reference, out)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the checkpoint has 2 blocks, this model has 12 blocks" in result.stderr
    assert not out.exists()
    out.mkdir()
    (out / "adapter_model.safetensors").touch()
    assert "holds adapters already" in run("convert", reference, out).stderr
    assert "does not exist" in run("convert", reference.with_name("nowhere.pth"), "x").stderr
