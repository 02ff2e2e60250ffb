"""`profile`, of a run and of an image model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm

from tests.cli.cases import run


def test_a_run_and_an_image_model_are_measured(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("profile", trained, "--device", "cpu", "--frames", 4, "--memory", "low", "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert (facts["frames"], facts["memory"], facts["image_size"]) == (4, "low", [32, 32])

    def build(*_: object, **__: object) -> object:
        return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)

    monkeypatch.setattr("aim_adapters.cli.profile.build_image_model", build)
    monkeypatch.setenv("COLUMNS", "60")
    result = run("profile", "timm:vit_tiny_patch16_224", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "training step" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 60


def test_what_cannot_be_profiled_is_said(trained: Path) -> None:
    for source, said in (("nowhere/nothing here", "'user/repo'"), ("vit_tiny_patch16_224", "near it: timm:vit_tiny")):
        result = run("profile", source)
        assert (result.exit_code, result.stdout) == (1, "")
        assert said in result.stderr
    assert run("profile", trained, "--memory", "little").exit_code == 2
