"""A base model is built by name exactly as its library builds it, and its weights are the pages of their file."""

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules import module as torch_module

from aim_adapters.backbones import BaseRequest, build_base, read_anatomy
from aim_adapters.backbones._assign import read_once
from tests.alignment import is_aligned, run_aligned
from tests.backbones.bases import (
    OPEN_CLIP,
    TIMM,
    TOWER,
    TRANSFORMERS,
    Probing,
    assert_bare,
    assert_equal,
    mapped,
    open_clip_folder,
    run,
    timm_folder,
    tiny_swin,
    tiny_vit,
    torchvision_file,
)
from tests.backbones.cases import scramble

pytestmark = pytest.mark.usefixtures("tiny_models")

# As the library builds it


@pytest.mark.parametrize("name", TIMM)
def test_timm_model_is_the_one_that_timm_builds(name: str, tmp_path: Path) -> None:
    folder = timm_folder(tmp_path, *TIMM[name])
    expected = timm.create_model(f"local-dir:{folder}", pretrained=True)
    arguments = json.loads(json.dumps(dict(read_anatomy(expected).build_arguments)))  # as a config keeps them
    built = build_base("timm", BaseRequest("", folder, arguments=arguments))
    assert_equal(built, expected)
    size = TIMM[name][1]["img_size"]
    assert torch.equal(run(built, size), run(expected, size))
    assert dict(read_anatomy(built).build_arguments) == arguments
    assert_bare(built)


@pytest.mark.parametrize("name", OPEN_CLIP)
@pytest.mark.parametrize("part", ["model", "visual"])
def test_open_clip_model_is_the_one_that_open_clip_builds(name: str, part: str, tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path, OPEN_CLIP[name])
    expected = open_clip.create_model(f"local-dir:{folder}")
    expected = expected.visual if part == "visual" else expected
    anatomy = read_anatomy(expected)
    assert anatomy.build_arguments["part"] == part
    built = build_base("open_clip", BaseRequest("", folder, arguments=anatomy.build_arguments))
    assert_equal(built, expected)
    assert read_anatomy(built) == anatomy
    size = OPEN_CLIP[name]["vision_cfg"]["image_size"]
    tower = built if part == "visual" else built.visual
    assert torch.equal(run(tower, size), run(expected if part == "visual" else expected.visual, size))
    assert_bare(built)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_model_is_the_one_that_transformers_builds(name: str, tmp_path: Path) -> None:
    architecture, config = TRANSFORMERS[name]
    cls = getattr(transformers, architecture)
    scramble(cls(config())).save_pretrained(tmp_path)
    expected = cls.from_pretrained(tmp_path)
    anatomy = read_anatomy(expected)
    assert anatomy.model_name is None  # a local path means nothing elsewhere
    assert anatomy.build_arguments["architecture"] == architecture
    built = build_base("transformers", BaseRequest("", tmp_path, arguments=anatomy.build_arguments))
    assert_equal(built, expected)
    assert_bare(built)


@pytest.mark.parametrize("builder", [tiny_vit, tiny_swin])
def test_torchvision_model_is_the_one_that_torchvision_builds(builder: Any, tmp_path: Path) -> None:
    torchvision_file(tmp_path, builder(num_classes=5))
    expected = builder(num_classes=5)
    expected.load_state_dict(torch.load(tmp_path / "tiny-00000000.pth", weights_only=True))
    arguments = read_anatomy(expected).build_arguments
    request = BaseRequest(f"{builder.__name__}:V1", arguments=arguments, cache_dir=tmp_path, local_files_only=True)
    built = build_base("torchvision", request)
    assert_equal(built, expected)
    assert torch.equal(run(built, 16), run(expected, 16))
    assert_bare(built)


def test_positions_are_resampled_as_timm_does(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path, *TIMM["vit"])
    expected = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=48)
    assert_equal(build_base("timm", BaseRequest("", folder, arguments={"img_size": [48, 48]})), expected)


def test_positions_are_resampled_as_open_clip_does(tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path, OPEN_CLIP["own"])
    expected = open_clip.create_model(f"local-dir:{folder}", force_image_size=32)
    arguments = {"part": "model", "image_size": [32, 32], "quick_gelu": True}
    assert_equal(build_base("open_clip", BaseRequest("", folder, arguments=arguments)), expected)


# Once


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
@pytest.mark.parametrize("name", ["vit", "eva", "beit", "swin v2"])
def test_weights_are_the_pages_of_their_file(name: str, tmp_path: Path) -> None:
    folder = timm_folder(tmp_path, *TIMM[name])
    built = build_base("timm", BaseRequest("", folder))
    kept = load_file(folder / "model.safetensors")
    as_in_file = [p for key, p in built.named_parameters() if torch.equal(p, kept.get(key, torch.empty(0)))]
    assert len(as_in_file) > 20
    assert all(mapped(p, folder / "model.safetensors") for p in as_in_file)


@pytest.mark.parametrize("before", [1, 2, 3])
def test_weights_that_begin_anywhere_compute_to_rounding_and_their_copy_to_the_bit(before: int, tmp_path: Path) -> None:
    """The classification of one image is the product of one row, where some CPUs differ in the last digit."""
    file, generator = tmp_path / "x.safetensors", torch.Generator().manual_seed(0)
    weight, image = (torch.randn(size, generator=generator) for size in ((400, 384), (1, 384)))
    save_file({"a": torch.zeros(before), "weight": weight}, file)

    def create() -> nn.Module:
        model = nn.Linear(384, 400, bias=False)
        model.load_state_dict({"weight": load_file(file)["weight"]})
        return model

    built, expected = read_once(create), create()
    assert not any(map(is_aligned, built.parameters())) and all(map(is_aligned, expected.parameters()))
    assert_equal(built, expected)
    with torch.no_grad():
        assert torch.equal(run_aligned(built, image), expected(image))


def test_weights_take_the_dtype_and_the_storage_of_the_model(tmp_path: Path) -> None:
    shared = torch.randn(4, 4, dtype=torch.float16)
    half = {"0.weight": shared, "1.weight": shared, "0.bias": torch.randn(2, 4).half().T[:, 0], "1.bias": torch.ones(4)}

    def create() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model.load_state_dict(half)
        return model

    built: Any = read_once(create)
    assert_equal(built, create())
    assert built[0].weight.dtype == torch.float32
    assert built[0].weight.data_ptr() != built[1].weight.data_ptr()


def test_another_thread_builds_as_ever() -> None:
    others = []

    def create() -> nn.Module:
        thread = threading.Thread(target=lambda: others.append(nn.Linear(2, 2)))
        thread.start()
        thread.join()
        model = nn.Linear(2, 2)
        model.load_state_dict({"weight": torch.ones(2, 2), "bias": torch.ones(2)})
        return model

    assert_bare(read_once(create))
    assert len(others) == 1 and not others[0].weight.is_meta


def test_constructor_that_computes_with_its_parameters_runs_in_the_ordinary_way() -> None:
    built = read_once(Probing)
    assert not built.proj.weight.is_meta  # type: ignore[union-attr]
    assert_bare(built)


def test_error_of_the_weights_is_raised_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path, *TIMM["vit"])
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(RuntimeError, match="Missing key"):
        build_base("timm", BaseRequest("", folder))
    assert not torch_module._global_parameter_registration_hooks
    assert not nn.Linear(2, 2).weight.is_meta


# What no file holds


def test_classification_layer_of_another_size_starts_new_in_silence(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "timm", *TIMM["vit"])
    built: Any = build_base("timm", BaseRequest("", folder, arguments={"num_classes": 7}))
    kept = load_file(folder / "model.safetensors")
    assert built.head.weight.shape == (7, 32) and built.head.weight.std() > 0
    assert all(torch.equal(p, kept[key]) for key, p in built.named_parameters() if not key.startswith("head"))
    torchvision_file(tmp_path, tiny_vit(num_classes=5))
    request = BaseRequest("tiny_vit:V1", arguments={"num_classes": 7}, cache_dir=tmp_path)
    built = build_base("torchvision", request)
    assert built.heads.head.weight.shape == (7, 32) and not built.heads.head.weight.any()  # as torchvision starts it
    transformers.ViTForImageClassification(transformers.ViTConfig(**TOWER, num_labels=5)).save_pretrained(tmp_path)
    arguments = {"architecture": "ViTForImageClassification", "num_labels": 7}
    built = build_base("transformers", BaseRequest("", tmp_path, arguments=arguments))
    assert built.classifier.weight.shape == (7, 32) and built.config.num_labels == 7


def test_other_random_parameters_are_named(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "timm", *TIMM["vit"])
    # With another number of classes timm is lenient about everything.
    with pytest.warns(UserWarning, match=r"start at random: attn_pool\.latent"):
        build_base("timm", BaseRequest("", folder, arguments={"num_classes": 7, "global_pool": "map"}))
    transformers.ViTModel(transformers.ViTConfig(**TOWER), add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"2 parameters .* start at random: pooler\.dense"):
        build_base("transformers", BaseRequest("", tmp_path, arguments={"architecture": "ViTModel"}))


def test_without_weights_nothing_is_fetched_and_nothing_is_empty(tmp_path: Path, offline: None) -> None:
    folder = timm_folder(tmp_path / "timm", *TIMM["swin"])
    (folder / "model.safetensors").unlink()
    open_clip_folder(tmp_path / "clip", OPEN_CLIP["own"])
    (tmp_path / "clip" / "open_clip_model.safetensors").unlink()
    transformers.Dinov2Config(**TOWER).save_pretrained(tmp_path / "hf")
    for library, request in {
        "timm": BaseRequest("", folder),
        "open_clip": BaseRequest("", tmp_path / "clip"),
        "torchvision": BaseRequest("tiny_vit"),
        "transformers": BaseRequest("", tmp_path / "hf", arguments={"architecture": "Dinov2Model"}),
    }.items():
        built = build_base(library, replace(request, pretrained=False))
        assert all(torch.isfinite(p).all() and not p.is_meta for p in built.parameters())
        assert max(p.std() for p in built.parameters() if p.ndim > 1) > 0
    assert build_base("timm", BaseRequest("test_vit", pretrained=False)).num_classes == 1000
