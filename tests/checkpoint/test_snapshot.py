"""What a checkpoint says of itself: written in full, said again, and refused where it cannot be true."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from torch import nn
from torchvision import models

import aim_adapters as aim
from aim_adapters.anatomy import fingerprint
from aim_adapters.backbones import read_anatomy
from aim_adapters.checkpoint.base_digest import base_digest
from aim_adapters.errors import ConfigError
from aim_adapters.storage import CONFIG_NAME
from tests.backbones.cases import wake
from tests.checkpoint.cases import names, rewrite
from tests.tiny import base, trained, wrapped


def test_config_is_written_in_full(tmp_path: Path) -> None:
    model = base("vit_x.in1k")
    anatomy = read_anatomy(model)
    identity, digest = fingerprint(model, anatomy), base_digest(model, anatomy)
    aim.wrap_image_model(model, 4, 0.5, 0.75, num_classes=3, layers=[0, -1], drop_path=0.1, tubelet_size=2)
    labels = ["zoom in", "zoom out", "still"]
    aim.save_adapters(model, tmp_path, base_model_revision="abc", frame_stride=16, labels=labels)
    assert json.loads((tmp_path / CONFIG_NAME).read_text(encoding="utf-8")) == {
        "library_name": "aim-adapters",
        "peft_type": "AIM",
        "format_version": 1,
        "aim_version": aim.__version__,
        "num_frames": 4,
        "bottleneck": 0.5,
        "scale": 0.75,
        "num_classes": 3,
        "components": ["temporal", "spatial", "joint"],
        "layers": [0, -1],
        "temporal_input_adapter": False,
        "drop_path": 0.1,
        "head_dropout": 0.0,
        "train_norm": True,
        "tubelet_size": 2,
        "input_layout": "auto",
        "temporal": "attention",
        "conv_kernel": 3,
        "conv_layers": None,
        "adapter_activation": "gelu",
        "base_model_name_or_path": "vit_x.in1k",
        "base_model_library": "timm",
        "base_model_revision": "abc",
        "base_model_arguments": dict(read_anatomy(base("vit_x.in1k")).build_arguments),
        "base_fingerprint": identity,
        "base_digest": digest,
        "clip": {
            "frames": 4,
            "stride": 16,
            "size": [16, 16],
            "mean": [0.5, 0.25, 0.125],
            "std": [1.0, 0.5, 0.25],
            "labels": labels,
        },
    }


def test_what_a_checkpoint_says_is_said_again_when_it_is_saved_again(tmp_path: Path) -> None:
    labels = list("abcde")
    first = aim.save_adapters(
        trained(), tmp_path / "first", base_model_name_or_path="vit", base_model_revision="abc", frame_stride=16,
        labels=labels,
    )  # fmt: skip
    model, other = base(), wrapped()
    aim.load_adapters(model, first)
    aim.load_adapters(other, first, name="added")
    before = json.loads((first / CONFIG_NAME).read_text(encoding="utf-8"))
    for again in (
        aim.save_adapters(model, tmp_path / "again"),
        aim.save_adapters(copy.deepcopy(model), tmp_path / "copied"),
        aim.save_adapters(other, tmp_path / "added", name="added"),
    ):
        assert json.loads((again / CONFIG_NAME).read_text(encoding="utf-8")) == before
    aim.save_adapters(model, tmp_path / "changed", frame_stride=4, labels=labels[::-1], base_model_name_or_path="x")
    after = json.loads((tmp_path / "changed" / CONFIG_NAME).read_text(encoding="utf-8"))
    assert (after["base_model_name_or_path"], after["clip"]["stride"], after["clip"]["labels"]) == (
        "x",
        4,
        labels[::-1],
    )
    # So it is in a model that was wrapped before: with the weights of the classifier come the names of its classes.
    aim.load_adapters(other, first)
    aim.save_adapters(other, tmp_path / "own")
    assert json.loads((tmp_path / "own" / CONFIG_NAME).read_text(encoding="utf-8"))["clip"]["labels"] == labels


def test_adapter_that_takes_other_weights_says_what_those_say(tmp_path: Path) -> None:
    first = aim.save_adapters(trained(), tmp_path / "first", frame_stride=16, labels=list("abcde"))
    second = aim.save_adapters(trained(), tmp_path / "second", frame_stride=8, labels=list("vwxyz"))
    model = base()
    aim.load_adapters(model, first)
    aim.load_adapters(model, second)
    again = aim.save_adapters(model, tmp_path / "again") / CONFIG_NAME
    assert again.read_bytes() == (second / CONFIG_NAME).read_bytes()
    rewrite(first, tensors=lambda tensors: tensors.pop("head.bias"))
    aim.load_adapters(model, first, strict=False)
    clip = json.loads((aim.save_adapters(model, tmp_path / "mixed") / CONFIG_NAME).read_text(encoding="utf-8"))["clip"]
    assert (clip["stride"], clip["labels"]) == (None, None)


def test_name_of_one_library_is_not_given_out_as_one_of_another(saved: Path, tmp_path: Path) -> None:
    rewrite(saved, config=lambda config: config.update(base_model_library="open_clip", base_model_name_or_path="V:x"))
    model = base("vit_x.in1k")
    aim.load_adapters(model, saved)
    config = json.loads((aim.save_adapters(model, tmp_path / "again") / CONFIG_NAME).read_text(encoding="utf-8"))
    assert (config["base_model_library"], config["base_model_name_or_path"]) == ("timm", "vit_x.in1k")


@pytest.mark.parametrize(
    "arguments",
    [{"base_model_name_or_path": Path("base")}, {"labels": 5}, {"labels": set("abcde")}, {"labels": iter("abcde")}],
)
def test_what_cannot_be_written_is_refused(arguments: dict[str, Any], saved: Path) -> None:
    before = {name: (saved / name).read_bytes() for name in names(saved)}
    with pytest.raises(ConfigError):
        aim.save_adapters(trained(), saved, **arguments)
    assert {name: (saved / name).read_bytes() for name in names(saved)} == before


def test_what_is_not_known_is_null(saved: Path) -> None:
    config = json.loads((saved / CONFIG_NAME).read_text(encoding="utf-8"))
    assert [config[key] for key in ("base_model_name_or_path", "base_model_revision")] == [None, None]
    assert config["clip"] == {
        "frames": 4, "stride": None, "size": [16, 16], "mean": None, "std": None, "labels": None,
    }  # fmt: skip


def test_name_that_is_given_goes_before_the_librarys(tmp_path: Path) -> None:
    aim.save_adapters(trained("vit_x.in1k"), tmp_path, base_model_name_or_path="my/fork")
    assert json.loads((tmp_path / CONFIG_NAME).read_text(encoding="utf-8"))["base_model_name_or_path"] == "my/fork"


@pytest.mark.parametrize(
    ("arguments", "labels", "message"),
    [
        ({"num_classes": 3}, ["a", "b"], "got 2 labels for a model with 3 classes"),
        ({"num_classes": 5}, "abcde", "labels must be a sequence of names"),
        ({}, ["a"] * 6, "got 6 labels for a model with 5 classes"),
        ({"num_classes": 0}, ["a"], "got 1 labels for a model with no classification layer"),
    ],
)
def test_labels_of_the_wrong_number_are_refused(
    arguments: dict[str, Any], labels: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        aim.save_adapters(trained(**arguments), tmp_path / "out", labels=labels)
    assert not (tmp_path / "out").exists()


# What the image model says of its classes and pixels


def clip_of(model: nn.Module, directory: Path, **options: Any) -> dict[str, Any]:
    aim.save_adapters(model, directory, **options)
    clip: dict[str, Any] = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))["clip"]
    return clip


def hf_vit(**config: Any) -> Any:
    size: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 16,
        "patch_size": 8,
    }  # fmt: skip
    return hf.ViTForImageClassification(hf.ViTConfig(**size, **config))


def test_labels_are_those_of_the_config_of_transformers(tmp_path: Path) -> None:
    named = {0: "cat", 1: "dog"}
    copied = aim.wrap_image_model(hf_vit(id2label=named, label2id={v: k for k, v in named.items()}), 2)
    assert clip_of(copied, tmp_path / "copied")["labels"] == ["cat", "dog"]
    assert clip_of(copied, tmp_path / "given", labels=["a", "b"])["labels"] == ["a", "b"]
    new = wake(aim.wrap_image_model(hf_vit(id2label=named), 2, num_classes=3))
    assert clip_of(new, tmp_path / "new")["labels"] is None
    new.config.id2label = {0: "run", 1: "sit", 2: "lie"}
    assert clip_of(new, tmp_path / "named")["labels"] == ["run", "sit", "lie"]
    aim.add_adapter(new, "other", aim.AIMConfig(2, num_classes=3))
    assert clip_of(new, tmp_path / "other", name="other")["labels"] is None
    again = hf_vit(id2label=named)
    again.load_state_dict(aim.unwrap_image_model(new).state_dict())
    aim.load_adapters(again, tmp_path / "named")
    assert clip_of(again, tmp_path / "again")["labels"] == ["run", "sit", "lie"]


def test_mean_and_std_are_those_of_the_image_processor_beside_the_model(tmp_path: Path) -> None:
    model = hf_vit()
    model.save_pretrained(tmp_path / "model")
    processor = tmp_path / "model" / "preprocessor_config.json"
    for content, expected in (
        ({"image_mean": [0.5, 0.25, 0.125], "image_std": [0.5, 0.5, 0.25]}, ([0.5, 0.25, 0.125], [0.5, 0.5, 0.25])),
        ({"image_mean": [0.5], "image_std": [0.5], "do_normalize": False}, (None, None)),
        ({"image_mean": "0.5", "image_std": [0.5]}, (None, None)),
        ({"image_mean": [0.5], "image_std": [0.5]}, (None, None)),
        ({"image_mean": [0.5] * 3, "image_std": [0.5, 0.5, 0]}, (None, None)),
        ({"image_mean": [10**400] * 3, "image_std": [0.5] * 3}, (None, None)),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 127.5}, (None, None)),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": "x"}, (None, None)),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": False}, (None, None)),
        ([], (None, None)),
    ):
        processor.write_text(json.dumps(content), encoding="utf-8")
        read = hf.ViTForImageClassification.from_pretrained(tmp_path / "model")
        clip = clip_of(aim.wrap_image_model(read, 2), tmp_path / "out")
        assert (clip["mean"], clip["std"]) == expected
    # The processor of images and text beside it, whose part goes first.
    both = {"image_processor": {"image_mean": [0.25] * 3, "image_std": [0.5] * 3}}
    processor.with_name("processor_config.json").write_text(json.dumps(both), encoding="utf-8")
    read = hf.ViTForImageClassification.from_pretrained(tmp_path / "model")
    assert clip_of(aim.wrap_image_model(read, 2), tmp_path / "out")["mean"] == [0.25] * 3


def test_torchvision_knows_pixels_always_and_classes_by_the_name_of_the_weights(tmp_path: Path) -> None:
    model = models.VisionTransformer(16, 8, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=64)
    aim.wrap_image_model(model, 2)
    clip = clip_of(model, tmp_path / "unnamed")
    assert (clip["mean"], clip["labels"]) == ([0.485, 0.456, 0.406], None)
    labels = clip_of(model, tmp_path / "named", base_model_name_or_path="vit_b_16:IMAGENET1K_V1")["labels"]
    assert labels == models.ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"]
    for name in models.list_models(include=["vit_*", "swin_*"]):
        for weights in models.get_model_weights(name):
            transform = weights.transforms()
            assert (list(transform.mean), list(transform.std)) == (clip["mean"], clip["std"])


def test_names_of_other_classes_are_not_taken_for_those_of_new_ones(tmp_path: Path) -> None:
    named = {0: "cat", 1: "dog"}
    new = aim.wrap_image_model(hf_vit(id2label=named), 2, num_classes=2)
    assert clip_of(new, tmp_path / "new")["labels"] is None
    new.config.id2label[0], new.config.id2label[1] = "run", "sit"
    assert clip_of(new, tmp_path / "edited")["labels"] == ["run", "sit"]
    new.config.id2label = {"1": "sit", "0": "lie"}
    assert clip_of(new, tmp_path / "strings")["labels"] == ["lie", "sit"]
    assert aim.unwrap_image_model(new).config.id2label == named


def test_pixels_of_other_channels_are_not_known(tmp_path: Path) -> None:
    gray = base("vit_x.in1k", in_chans=1)
    assert clip_of(aim.wrap_image_model(gray, 2), tmp_path / "out")["mean"] is None


def test_mean_and_std_that_were_given_once_are_kept(tmp_path: Path) -> None:
    clip_of(trained("vit_x.in1k"), tmp_path / "first", mean=[0.1, 0.2, 0.3])
    model = base("vit_x.in1k")
    aim.load_adapters(model, tmp_path / "first")
    assert clip_of(model, tmp_path / "again")["mean"] == [0.1, 0.2, 0.3]
    assert clip_of(model, tmp_path / "other", mean=[0.3, 0.2, 0.1])["mean"] == [0.3, 0.2, 0.1]


@pytest.mark.parametrize(
    "wrong", [[10**400] * 3, b"abc", [0.5], "0.5", [0.5, 0.5, "0.5"], [0.5, 0.5, float("nan")], [True] * 3, 0.5]
)
def test_mean_and_std_that_are_given_win_if_they_can_be(wrong: Any, tmp_path: Path) -> None:
    model = trained()
    clip = clip_of(model, tmp_path / "out", mean=(0.5, 0.25, 1), std=[1, 2, 3])
    assert (clip["mean"], clip["std"]) == ([0.5, 0.25, 1.0], [1.0, 2.0, 3.0])
    for name in ("mean", "std"):
        with pytest.raises(ConfigError, match=f"{name} must be 3 finite numbers"):
            aim.save_adapters(model, tmp_path / "new", **{name: wrong})
    with pytest.raises(ConfigError, match="std must be 3 finite numbers > 0"):
        aim.save_adapters(model, tmp_path / "new", std=[1, 0, 1])
    assert not (tmp_path / "new").exists()
