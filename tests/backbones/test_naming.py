"""Image models by library and name."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import transformers

import aim_adapters as aim
from aim_adapters.backbones import BaseRequest, build_classifier, list_models
from aim_adapters.backbones.registry import backbones_of


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm:vit_tiny_patch16_224", (32, 48)),
        ("torchvision:vit_b_16", (32, 32)),
    ],
)
@pytest.mark.filterwarnings("ignore:the image model looks untrained")
def test_a_name_gives_a_classifier_of_frames_of_any_size(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = build_classifier(name, image_size=size, pretrained=False)
    aim.wrap_image_model(model, num_frames=2, labels=["in", "out"])
    assert aim.clip_spec(model).image_size == size
    assert model(torch.zeros(1, 2, 3, *size, device="meta")).shape == (1, 2)


def test_an_image_tower_of_open_clip_runs_as_its_weights_were_trained() -> None:
    [backbone] = backbones_of("open_clip")
    assert backbone.classifier is not None
    complete = partial(backbone.classifier, image_size=(32, 48))
    quick = {"part": "visual", "image_size": [32, 48], "quick_gelu": True}
    assert complete(BaseRequest("ViT-B-16:openai")).arguments == quick
    assert complete(BaseRequest("ViT-B-16/openai")) == complete(BaseRequest("ViT-B-16:openai"))
    assert "quick_gelu" not in complete(BaseRequest("ViT-B-16:laion2b_s34b_b88k")).arguments


@pytest.mark.parametrize("kind", ["clip", "vit", "deit"])
@pytest.mark.filterwarnings("ignore:the image model looks untrained")
def test_a_directory_of_transformers_gives_its_classifier(kind: str, tmp_path: Path) -> None:
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    fields = {"vision_config": vision} if kind == "clip" else vision
    transformers.AutoConfig.for_model(kind, **fields).save_pretrained(tmp_path)
    model = build_classifier(f"transformers:{tmp_path}", pretrained=False)
    aim.wrap_image_model(model, num_frames=2, labels=["in", "out"])
    assert model(torch.zeros(1, 2, 3, 32, 32)).logits.shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:vit_tiny_patch16_24", "near it: timm:vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224", "near it: timm:vit_tiny_patch16_224"),
        ("torchvision:vit_b_17", "near it: torchvision:vit_b_16"),
        ("open_clip:ViT-B-61:openai", "near it: open_clip:ViT-B-16:openai"),
        ("keras:resnet", "libraries are open_clip, timm"),
        ("timm:", "libraries are open_clip, timm"),
        ("timm:/no/such/folder", "there is no directory"),
        ("src", "put the library of this directory in front, as in 'timm:src'"),
    ],
)
def test_names_that_nobody_knows_are_refused_with_near_ones(name: str, said: str) -> None:
    with pytest.raises(aim.ConfigError, match=said):
        build_classifier(name, pretrained=False)


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18", "open_clip:RN50:openai"])
def test_what_cannot_be_adapted_is_refused_before_weights_are_fetched(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(*_: object, **__: object) -> None:
        raise AssertionError("asked for weights")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    monkeypatch.setattr("torch.hub.download_url_to_file", fetched)
    with pytest.raises(aim.UnsupportedModelError, match="is not an image transformer that can be adapted"):
        build_classifier(name)


def test_sizes_that_a_library_does_not_build_are_refused(tmp_path: Path) -> None:
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(aim.ConfigError, match="size in its config, 224; got 32x32"):
        build_classifier(f"transformers:{tmp_path}", image_size=(32, 32))
    with pytest.raises(aim.ConfigError, match="square"):
        build_classifier("torchvision:vit_b_16", image_size=(32, 48), pretrained=False)


def test_names_are_of_models_with_weights() -> None:
    assert "vit_base_patch16_clip_quickgelu_224.openai" in list_models("timm")
    assert "ViT-B-16:openai" in list_models("open_clip")
    assert "vit_b_16:IMAGENET1K_V1" in list_models("torchvision")
    assert not any(name.startswith(("resnet", "RN50")) for name in list_models("timm") + list_models("open_clip"))
    with pytest.raises(aim.ConfigError, match="keras"):
        list_models("keras")
