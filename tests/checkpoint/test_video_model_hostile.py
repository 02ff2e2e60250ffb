"""The base model in somebody else's config is compared with the fingerprint before it takes memory or is fetched."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm

import aim_adapters as aim
from aim_adapters.errors import CheckpointError
from tests.backbones.bases import TIMM, timm_folder
from tests.checkpoint.test_video_model import train
from tests.memory import at_most


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    base = timm_folder(tmp_path / "base", *TIMM["vit"])
    return aim.save_adapters(train(timm.create_model(f"local-dir:{base}", pretrained=True)), tmp_path / "out")


def change_base(checkpoint: Path, **fields: Any) -> Path:
    path = checkpoint.parent / "base" / "config.json"
    config = json.loads(path.read_text())
    config["model_args"].update(fields)
    path.write_text(json.dumps(config))
    return path.parent


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("fields", [{"embed_dim": 8192}, {"embed_dim": 8192, "depth": 24}, {"mlp_ratio": 10**5}])
def test_another_base_takes_no_memory(fields: dict[str, Any], pretrained: bool, checkpoint: Path) -> None:
    base = change_base(checkpoint, **fields)
    (base / "model.safetensors").unlink()  # not reached
    with at_most(100), pytest.raises(CheckpointError, match=r"^the adapters were trained on another base|values, the"):
        aim.load_video_model(checkpoint, base_model=base, pretrained=pretrained)


@pytest.mark.parametrize("depth", [10**6, 10**9])
def test_layers_without_end(depth: int, checkpoint: Path) -> None:
    with at_most(100), pytest.raises(CheckpointError, match=r"asks for depth=.*build it yourself"):
        aim.load_video_model(checkpoint, base_model=change_base(checkpoint, depth=depth))


def test_config_that_its_library_refuses(tmp_path: Path) -> None:
    import transformers

    from tests.backbones.bases import TOWER

    transformers.ViTModel(transformers.ViTConfig(**TOWER)).save_pretrained(tmp_path / "base")
    aim.save_adapters(train(transformers.ViTModel.from_pretrained(tmp_path / "base"), num_classes=None), tmp_path / "a")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": "x"}))
    with pytest.raises(CheckpointError, match="cannot build the base model"):
        aim.load_video_model(tmp_path / "a", base_model=tmp_path / "base")
