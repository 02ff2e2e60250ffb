"""The examples for Lightning, the Trainer and Accelerate run as they stand, on tiny videos and a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hf

import accelerate_loop
import aim_adapters as aim
import lightning_loop
import trainer_loop
from tests.backbones.cases import scramble
from tests.tiny import base
from tests.training.cases import CLASSES, FRAMES, videos

pytestmark = [
    pytest.mark.filterwarnings("ignore:up/7.mp4"),  # which is broken
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Found [0-9]+ module.s. in eval mode"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),
]


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: base("vit_tiny_patch16_224.test").train())
    words = f"--frames {FRAMES} --epochs 2 --batch-size 4 --workers 0"
    return [str(videos() / "train"), str(videos() / "test"), "--out", str(tmp_path / "out"), *words.split()]


def adapters(folder: Path) -> dict[str, torch.Tensor]:
    model = base("vit_tiny_patch16_224.test")
    assert aim.load_adapters(aim.wrap_image_model(model, FRAMES, labels=CLASSES), folder).missing == ()
    return dict(aim.adapter_state_dict(model))


def test_lightning(arguments: list[str], tmp_path: Path) -> None:
    classifier = lightning_loop.main(arguments)
    assert set(torch.load(tmp_path / "out" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]) == {
        name for name, parameter in classifier.named_parameters() if parameter.requires_grad
    }
    assert adapters(tmp_path / "out" / "checkpoints" / "best.aim")


def test_trainer(arguments: list[str], tmp_path: Path) -> None:
    size: dict[str, Any] = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2}
    config = hf.ViTConfig(**size, num_attention_heads=2, intermediate_size=64)
    scramble(hf.ViTForImageClassification(config)).save_pretrained(tmp_path / "vit")
    processor = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    arguments += ["--model", str(tmp_path / "vit")]
    trainer_loop.main(arguments)
    whole = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(max((tmp_path / "out").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])))
    trainer_loop.main([*arguments, "--resume"])
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == whole


def test_accelerate(arguments: list[str], tmp_path: Path) -> None:
    whole = accelerate_loop.main(arguments)
    trained = adapters(tmp_path / "out")
    resumed = accelerate_loop.main([*arguments, "--resume", str(tmp_path / "out" / "epoch-0")])
    assert torch.equal(resumed.probabilities, whole.probabilities)
    assert all(torch.equal(tensor, trained[key]) for key, tensor in adapters(tmp_path / "out").items())
