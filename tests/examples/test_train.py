from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import timm

import train
from tests.tiny import base
from tests.training.cases import CLASSES, videos


def test_the_example_trains_on_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, **settings: Any) -> Any:
        return base("vit_tiny_patch16_224.test")

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr("aim_adapters.training.feeding.default_workers", lambda: 0)
    arguments = [str(videos() / "train"), str(videos() / "test"), "--out", str(tmp_path), "--frames", "4"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "up/7.mp4")
        result = train.main([*arguments, "--epochs", "1"])
    assert result.steps == 3 and result.evaluation is not None
    assert result.evaluation.labels == CLASSES and (tmp_path / "adapter_model.safetensors").is_file()
