"""Counted arithmetic equals the closed formula, and the paper's tables within one percent."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

import aim_adapters as aim
from aim_adapters.errors import ConfigError


def formula(frames: int, tokens: int, dim: int, depth: int, patch: int, classes: int, *, input_adapter: bool) -> float:
    """Multiply-accumulates of AIM on a ViT with [class] token, width-4 MLP and adapters of a quarter width."""
    n, w = frames * tokens, dim // 4
    projections = 2 * 4 * dim * dim * n  # q, k, v and out, over frames and over tokens
    attention = 2 * dim * n * (frames + tokens)
    mlp = 8 * dim * dim * n
    adapters = (4 if input_adapter else 3) * 2 * dim * w * n
    embedding = frames * (tokens - 1) * 3 * patch * patch * dim
    return depth * (projections + attention + mlp + adapters) + embedding + dim * classes


@pytest.mark.parametrize("input_adapter", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_count_equals_the_formula(input_adapter: bool, device: str) -> None:
    with torch.device(device):
        model = VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=5)
    aim.wrap_image_model(model, 4, temporal_input_adapter=input_adapter)
    macs = formula(4, 17, 64, 2, 8, 5, input_adapter=input_adapter)
    assert aim.count_flops(model).gmacs * 1e9 == pytest.approx(macs, rel=1e-12)
    assert aim.count_flops(model).gflops == 2 * aim.count_flops(model).gmacs


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("kernel", "meet"), [(5, 5), (9, 7)])
@pytest.mark.filterwarnings("ignore:conv_kernel=9")
def test_a_convolution_counts_the_taps_that_meet_frames(kernel: int, meet: int, device: str) -> None:
    counts = []
    settings: tuple[dict[str, Any], ...] = ({}, {"temporal": "both", "conv_kernel": kernel, "conv_layers": [1]})
    for each in settings:
        with torch.device(device):
            model = VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=5)
        counts.append(aim.count_flops(aim.wrap_image_model(model, 4, **each)).gmacs * 1e9)
    added = 4 * 17 * (2 * 64 * 16 + meet * 16)  # two projections, and the taps of each feature
    assert counts[1] - counts[0] == pytest.approx(added, rel=1e-9)


@pytest.mark.parametrize(
    ("model", "frames", "ssv2", "printed"),
    [
        ("base", 8, False, 606),
        ("base", 16, False, 1214),
        ("base", 32, False, 2428),
        ("base", 8, True, 624),
        ("base", 32, True, 2496),
        ("large", 8, False, 2802),
        ("large", 8, True, 2877),
        ("large", 32, True, 11508),
    ],
)
def test_paper_tables(model: str, frames: int, ssv2: bool, printed: int) -> None:
    sizes = {"base": (197, 768, 12, 16), "large": (257, 1024, 24, 14)}
    macs = formula(frames, *sizes[model], 174 if ssv2 else 400, input_adapter=ssv2)
    assert 3e-9 * macs == pytest.approx(printed, rel=0.01)


@pytest.mark.parametrize(
    ("name", "frames", "ssv2", "printed"),
    [
        ("vit_base_patch16_clip_quickgelu_224.openai", 32, True, 2496),
        ("vit_large_patch14_clip_quickgelu_224.openai", 8, False, 2802),
    ],
)
def test_count_of_the_paper(name: str, frames: int, ssv2: bool, printed: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
        aim.wrap_image_model(model, frames, num_classes=174 if ssv2 else 400, temporal_input_adapter=ssv2)
    assert 3 * aim.count_flops(model).gmacs == pytest.approx(printed, rel=0.01)


def test_counting_leaves_the_model_alone() -> None:
    model = aim.wrap_image_model(timm.create_model("test_vit"), 4).train()
    aim.count_flops(model)
    assert model.training
    assert not any(isinstance(p, torch._subclasses.FakeTensor) for p in model.parameters())
    assert aim.count_flops(model, image_size=160) == aim.count_flops(model)


def test_unknown_image_size_is_asked_for() -> None:
    from torchvision.models.swin_transformer import SwinTransformer

    model = aim.wrap_image_model(SwinTransformer([4, 4], 16, [2], [2], [4, 4]), 4)
    with pytest.raises(ConfigError, match="image_size"):
        aim.count_flops(model)
    assert aim.count_flops(model, image_size=32).gmacs > 0
