from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import pretrained
from benchmarks.motion import ways, weights


def test_what_is_written_is_what_runs_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []

    def load(name: str, img_size: tuple[int, int], *, cache: Path) -> nn.Module:
        made.append(timm.create_model("test_vit", img_size=img_size, num_classes=0))
        return made[-1]

    monkeypatch.setattr(pretrained, "load_pretrained", load)
    monkeypatch.setitem(ways.BACKBONES, "clip-base", ways.Backbone("test_vit", size=32))
    weights.main(["--out", str(tmp_path / "new"), "--backbones", "clip-base"])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["clip-base.safetensors"]
    model = ways.load_backbone("clip-base", tmp_path / "new", 160)
    expected = made[0].state_dict()
    assert expected["pos_embed"].shape[1] == 101  # 160 x 160 pixels, as published
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[key].half().float(), rtol=0, atol=0)
