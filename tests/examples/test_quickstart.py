from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import aim_adapters as aim
import quickstart
from aim_adapters.video import VideoFolder
from tests.backbones.cases import wake
from tests.video.videos import write

CLASSES = 6


def tiny(size: int) -> nn.Module:
    torch.manual_seed(1)
    model = timm.models.VisionTransformer(
        img_size=size, patch_size=14, embed_dim=32, depth=4, num_heads=2, init_values=1.0, num_classes=0
    )
    model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    return model.eval()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(6):
        noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC).save(folder / f"{seed}.png")
    return sorted(folder.iterdir())


def test_the_whole_run_on_tiny_data(
    photographs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = f"--epochs 2 --clips 12 --test-clips 12 --size 28 --frames 4 --cache {tmp_path / 'cache'}"
    before = {key: value.clone() for key, value in tiny(28).state_dict().items()}
    loaded: list[nn.Module] = []

    def load(size: int) -> nn.Module:
        loaded.append(tiny(size))
        return loaded[-1]

    results = quickstart.main(
        [*argv.split(), "--out", str(tmp_path / "out")], photographs=photographs, load_backbone=load
    )

    frozen, adapted = results["Frozen"], results["AIM"]
    assert frozen.trainable == 32 * CLASSES + CLASSES + 2 * 32
    assert adapted.trainable > frozen.trainable
    assert len(frozen.training.losses) == len(adapted.training.losses) == 2
    assert adapted.test.probabilities.shape == (12, CLASSES)
    assert all(0 <= value <= 1 for result in results.values() for value in (result.test.top1, result.motion))
    assert len(loaded) == 2  # the backbone that was adapted, and the fresh one
    state = loaded[0].state_dict()
    assert all(torch.equal(state[key], value) for key, value in before.items())  # all three trainings left it alone

    printed = capsys.readouterr().out
    for line in ("what moves", "Guessing", "Frozen", "AIM", "the same predictions on 12 test clips, to the bit"):
        assert line in printed
    assert json.loads((tmp_path / "out" / "aim" / "adapter_config.json").read_text())["num_frames"] == 4
    with Image.open(tmp_path / "out" / "quickstart.png") as picture:
        assert picture.width > 1500
        assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 1000

    used = {}
    for name in ("train", "test"):
        index = next((tmp_path / "cache" / "videos").glob(f"{name}-*")) / ".index.csv"
        used[name] = {row["photograph"] for row in csv.DictReader(index.read_text().splitlines())}
    assert used["train"] and used["test"]
    assert not used["train"] & used["test"]


def test_a_reload_that_predicts_something_else_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "videos" / "zoom in" / "a.mp4", count=8)
    test = VideoFolder(tmp_path / "videos", num_frames=4, labels=quickstart.CLASSES, allow_empty=True)
    model = wake(aim.wrap_image_model(tiny(28), num_frames=4, labels=quickstart.CLASSES))
    aim.save_adapters(model, tmp_path / "adapters")
    expected = aim.evaluate(model, test, "1x1", workers=0, progress=False)
    quickstart.reload(tmp_path / "adapters", tiny(28), test, expected)
    with pytest.raises(RuntimeError, match="predict something else"):
        other = dataclasses.replace(expected, probabilities=expected.probabilities + 1e-6)
        quickstart.reload(tmp_path / "adapters", tiny(28), test, other)


def test_scores_tell_what_moves_from_which_way(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = torch.tensor([0, 1, 2, 3])
    answers = torch.tensor([0, 0, 2, 5])  # right, wrong way, right, wrong motion
    found = aim.Evaluation(
        quickstart.CLASSES, tuple("abcd"), targets, torch.nn.functional.one_hot(answers, CLASSES).double(), (), "1x1"
    )
    monkeypatch.setattr(aim, "evaluate", lambda *_, **__: found)
    model = aim.wrap_image_model(tiny(28), num_frames=4, labels=quickstart.CLASSES)
    result = quickstart.assess(model, None, None)
    assert (result.test.top1, result.motion) == (0.5, 0.75)
    assert result.direction == pytest.approx(2 / 3)
