"""`push`: what would be uploaded, and what is handed to the library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import aim_adapters as aim
from tests.checkpoint.cases import rewrite
from tests.cli.cases import CLASSES, run


def test_a_dry_run_asks_neither_the_hub_nor_for_a_token(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("huggingface_hub.HfApi", refuse)
    monkeypatch.setattr("huggingface_hub.get_token", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    result = run("push", trained, "me/mine", "--private", "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert (facts["repo"], facts["new_repository"]) == ("me/mine", "private")
    assert set(facts["files"]) == {"adapter_model.safetensors", "adapter_config.json", "README.md", "config.json"}
    assert facts["files"]["adapter_model.safetensors"] == (trained / "adapter_model.safetensors").stat().st_size


def test_the_trained_model_is_pushed(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def push(model: Any, repo: str, **facts: Any) -> str:
        given.update(facts, labels=aim.clip_spec(model).labels, repo=repo)
        return "0" * 40

    monkeypatch.setattr("aim_adapters.checkpoint.push_to_hub", push)
    result = run("push", trained, "me/mine", "--public", "--license", "mit", "--dataset", "a", "--dataset", "b")
    assert result.exit_code == 0, result.stderr
    assert (given["repo"], given["labels"], given["private"]) == ("me/mine", CLASSES, False)
    assert (given["license"], given["datasets"]) == ("mit", ["a", "b"])


def test_what_cannot_be_pushed_is_said_before_the_hub_is_asked(trained: Path, tmp_path: Path) -> None:
    for arguments, said in (
        ((trained, "me/mine/too"), "cannot be the id of a repository"),
        ((trained, "me/mine", "--branch", "../x"), "--branch must be a relative path"),
        ((tmp_path, "me/mine"), "holds no adapter_model.safetensors"),
        ((tmp_path / "nowhere", "me/mine"), "does not exist"),
    ):
        result = run("push", *arguments, "--dry-run")
        assert (result.exit_code, result.stdout) == (1, "")
        assert said in result.stderr
    broken = shutil.copytree(trained, tmp_path / "broken")
    rewrite(broken, tensors=lambda state: state["norm.bias"].fill_(float("nan")))
    assert "NaN or infinities in norm.bias" in run("push", broken, "me/mine").stderr
