"""Models are found by their families, also inside others; facts of a library are known without it."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn

import aim_adapters as aim
from tests.backbones.cases import assert_same, snapshot
from tests.tiny import FRAMES, base, video

PROGRAM = """
import sys
sys.modules.update(dict.fromkeys(("open_clip", "timm", "torchvision", "transformers")))  # importing one fails
from aim_adapters.backbones import base_facts
print(*base_facts("timm", "vit.in1k", {}))
print(*base_facts("open_clip", "ViT-B-16:openai", {"part": "model"}))
print(*base_facts("torchvision", "vit_b_16:IMAGENET1K_V1", {}))
print(*base_facts("transformers", "google/siglip", {"architecture": "SiglipModel"}))
"""


def test_base_models_are_described_where_their_library_is_missing() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "timm/vit.in1k model",
        "None model.encode_image",
        "None model",
        "google/siglip model.get_image_features",
    ]


@pytest.mark.parametrize(
    ("holder", "place"),
    [
        (lambda vit: nn.Sequential(vit), "model[0]"),
        (lambda vit: nn.Sequential(OrderedDict(backbone=nn.Sequential(nn.Identity(), vit))), "model.backbone[1]"),
        (lambda vit: nn.ModuleDict({"one": vit, "two": base()}), "model.one or model.two"),
    ],
)
def test_a_module_around_a_model_is_told_to_wrap_the_inner_one(holder: object, place: str) -> None:
    model = holder(base())  # type: ignore[operator]
    before = snapshot(model)
    with pytest.raises(aim.UnsupportedModelError) as caught:
        aim.wrap_image_model(model, FRAMES)
    assert f"but holds one: take the inner model instead, {place}; the module around it goes on" in str(caught.value)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("name", ["hiera_tiny_224", "mvitv2_tiny", "sam2_hiera_tiny"])
def test_models_that_pool_inside_attention_are_refused_with_the_reason(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(
        aim.UnsupportedModelError, match=r"is timm\.[\w.]+, whose attention pools: it returns fewer tokens"
    ):
        aim.wrap_image_model(model, FRAMES)


def test_the_module_around_a_model_goes_on_when_the_inner_one_is_wrapped() -> None:
    model = nn.Sequential(base(), nn.Linear(5, 2))
    aim.wrap_image_model(model[0], FRAMES)
    assert model(video()).shape == (2, 2)
