"""What a checkpoint holds, told without its base model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import aim_adapters as aim
from aim_adapters.checkpoint import Inspection, inspect_checkpoint
from tests.backbones.cases import wake
from tests.checkpoint.cases import rewrite


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose base model can be built by its name."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32)
    aim.wrap_image_model(model, 2, layers=[10, 11], labels=["in", "out"])
    return aim.save_adapters(wake(model), tmp_path_factory.mktemp("named"))


def changed(named: Path, folder: Path, **edits: Any) -> Inspection:
    for file in named.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    rewrite(folder, **edits)
    return inspect_checkpoint(folder)


@pytest.mark.filterwarnings("ignore:this image model does not hold")
def test_everything_is_told(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("a base model was fetched")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    found = inspect_checkpoint(named)
    assert (found.loads, found.problems) == (True, ())
    assert found.parameters == sum(tensor.numel() for tensor in aim.adapter_state_dict(model_of(named)).values())
    assert found.clip["labels"] == ["in", "out"]
    assert found.settings["layers"] == [10, 11]
    assert found.base["library"] == "timm"
    facts = json.loads(json.dumps(found.to_dict()))
    assert facts["tensors"][0].keys() == {"name", "shape", "dtype", "bytes"}
    text = found.to_text(80)
    assert max(map(len, text.splitlines())) <= 80
    assert "blocks.*.temporal.down_proj.weight  2 × [48, 192]  73.7 kB" in text


def model_of(named: Path) -> torch.nn.Module:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32)
    aim.load_adapters(model, named, allow_other_base=True)
    return model


def test_what_is_wrong_is_a_problem(named: Path, tmp_path: Path) -> None:
    def break_one(state: dict[str, Any]) -> None:
        state["norm.bias"][0] = float("nan")

    def drop_one(state: dict[str, Any]) -> None:
        del state["norm.bias"]

    def untrain(state: dict[str, Any]) -> None:
        for key, tensor in state.items():
            tensor.mul_(".up_proj." not in key)

    for edit, said in (
        (break_one, "it holds NaN or infinities in norm.bias"),
        (drop_one, "it does not load: .*norm.bias"),
        (untrain, "it was never trained"),
    ):
        found = changed(named, tmp_path, tensors=edit)
        assert len(found.problems) == 1
        assert re.search(said, found.problems[0])


def test_another_base_is_told_from_one_that_cannot_be_built(named: Path, tmp_path: Path) -> None:
    found = changed(
        named, tmp_path, config=lambda config: config.update(base_model_name_or_path="vit_small_patch16_224")
    )
    assert found.loads is False
    assert "another base" in found.problems[0]
    for name in ("vit_of_tomorrow", "/a/path", None):
        found = changed(named, tmp_path, config=lambda config, name=name: config.update(base_model_name_or_path=name))
        assert (found.loads, found.problems) == (None, ())
    (tmp_path / "optimizer.pt").touch()
    assert "optimizer.pt may be a pickle, and is never read" in inspect_checkpoint(tmp_path).safety


def test_without_labels_it_says_so(good: Path) -> None:
    found = inspect_checkpoint(good)
    assert "none: classes are known by their index alone" in str(found)
