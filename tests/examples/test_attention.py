from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import aim_adapters as aim
import attention
from tests.backbones.cases import wake
from tests.video.videos import write


def tiny(size: tuple[int, int]) -> timm.models.VisionTransformer:
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(img_size=size, patch_size=14, embed_dim=32, depth=2, num_heads=2)
    model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    return model.eval()


def test_attention_of_the_image_model_moves_over_the_clip(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", count=12)
    painted = attention.main(
        [str(clip), *f"--frames 6 --height 28 --width 42 --out {tmp_path / 'out'}".split()], load_backbone=tiny
    )
    assert painted.shape == (6, 3, 28, 42)
    with Image.open(tmp_path / "out" / "attention.webp") as picture:
        assert (picture.n_frames, picture.size) == (6, (42, 28))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["attention.png", "attention.webp"]


def test_of_a_trained_model_the_variants_are_drawn_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wake(aim.wrap_image_model(tiny((28, 28)), num_frames=4, num_classes=2))
    monkeypatch.setattr(aim, "load_video_model", {"me/clips": model}.__getitem__)
    clip = write(tmp_path / "clip.mp4", count=8)
    attention.main([str(clip), "--adapters", "me/clips", "--out", str(tmp_path / "out")])
    with Image.open(tmp_path / "out" / "variants.png") as picture:
        assert picture.height > 5 * 160
