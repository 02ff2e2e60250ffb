"""A base model is built by name exactly as its library builds it, and its weights are the pages of their file."""

import json
import pickle
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import timm
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError
from open_clip import factory, pretrained
from safetensors.torch import load_file, save_file
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torchvision.models import SwinTransformer, VisionTransformer, Weights, WeightsEnum
from torchvision.models._api import BUILTIN_MODELS

from aim_adapters.backbones import Backbone, BaseRequest, build_base, read_anatomy, register_backbone
from aim_adapters.backbones._assign import read_once
from aim_adapters.backbones.registry import _registered as registered
from aim_adapters.errors import CheckpointError, ConfigError, UnsupportedModelError
from tests.alignment import is_aligned, run_aligned
from tests.backbones.cases import scramble

SMALL: dict[str, Any] = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
SWIN: dict[str, Any] = {
    "img_size": 32, "embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4, "num_classes": 5,
}  # fmt: skip
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {**SMALL, "patch_size": 8}),
    "clip": ("vit_base_patch16_clip_224", {**SMALL, "patch_size": 8}),
    "siglip": ("vit_base_patch16_siglip_224", {**SMALL, "patch_size": 8, "num_classes": 0}),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {**SMALL, "img_size": 28}),
    "distilled": ("deit_tiny_distilled_patch16_224", {**SMALL, "patch_size": 8}),
    "eva": ("eva02_tiny_patch14_224", {**SMALL, "img_size": 28}),
    "mixed rope": ("vit_small_patch16_rope_mixed_224", {**SMALL, "patch_size": 8}),
    "dinov3": ("vit_small_patch16_dinov3", {**SMALL, "patch_size": 8}),
    "beit": ("beit_base_patch16_224", {**SMALL, "patch_size": 8}),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "swin v2": ("swinv2_tiny_window8_256", SWIN),
}
TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "own": {"embed_dim": 16, "quick_gelu": True, "text_cfg": TEXT, "vision_cfg": {
        "image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16,
    }},
    "timm trunk": {"embed_dim": 16, "custom_text": True, "text_cfg": TEXT, "vision_cfg": {
        "image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear",
    }},
}  # fmt: skip
TOWER: dict[str, Any] = {
    "image_size": 16, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2,
}  # fmt: skip
CLIP_TEXT: dict[str, Any] = {
    **TOWER, "vocab_size": 16, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
TRANSFORMERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "vit": ("ViTForImageClassification", lambda: transformers.ViTConfig(**TOWER, num_labels=5)),
    "deit": ("DeiTModel", lambda: transformers.DeiTConfig(**TOWER)),
    "dinov2": ("Dinov2Model", lambda: transformers.Dinov2Config(**TOWER)),
    "dinov3": ("DINOv3ViTModel", lambda: transformers.DINOv3ViTConfig(**TOWER)),
    "clip tower": ("CLIPVisionModel", lambda: transformers.CLIPVisionConfig(**TOWER)),
    "siglip tower": ("SiglipVisionModel", lambda: transformers.SiglipVisionConfig(**TOWER)),
    "clip": ("CLIPModel", lambda: transformers.CLIPConfig(vision_config=TOWER, text_config=CLIP_TEXT)),
}


class TinyWeights(WeightsEnum):
    """What torchvision offers for the models below."""

    V1 = Weights(url="https://localhost/tiny-00000000.pth", transforms=nn.Identity, meta={})


def tiny_vit(*, weights: TinyWeights | None = None, progress: bool = True, **options: Any) -> VisionTransformer:
    return VisionTransformer(
        **{"image_size": 16, **options}, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64
    )


def tiny_swin(*, weights: TinyWeights | None = None, progress: bool = True, **options: Any) -> SwinTransformer:
    return SwinTransformer(
        patch_size=[4, 4], embed_dim=16, depths=[2, 2], num_heads=[1, 2], window_size=[4, 4], **options
    )


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for builder in (tiny_vit, tiny_swin):
        monkeypatch.setitem(BUILTIN_MODELS, builder.__name__, builder)


class Probing(nn.Module):
    """A model that runs a part of itself while it is made, as timm's hybrids do."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(2, 3)
        self.positive = bool(self.proj(torch.ones(1, 2)).square().sum() >= 0)


def timm_folder(folder: Path, architecture: str, arguments: dict[str, Any]) -> Path:
    """Write a timm model with random weights as the Hub keeps it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": architecture,
        "model_args": arguments,
        "pretrained_cfg": {"tag": "x", "classifier": "head"},
    }
    config["pretrained_cfg"]["num_classes"] = arguments.get("num_classes", 1000)  # type: ignore[index]
    (folder / "config.json").write_text(json.dumps(config))
    save_file(scramble(timm.create_model(architecture, **arguments)).state_dict(), folder / "model.safetensors")
    return folder


def open_clip_folder(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}})
    )
    model = scramble(open_clip.create_model(f"local-dir:{folder}", load_weights=False))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def torchvision_file(cache: Path, model: nn.Module) -> None:
    """Put weights where torch keeps what it has downloaded."""
    torch.save(scramble(model).state_dict(), cache / "tiny-00000000.pth")


def parts(model: nn.Module) -> dict[str, Any]:
    """Return everything a model is made of."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "modules": [(name, type(module)) for name, module in model.named_modules()],
        "tensors": {name: (tensor.shape, tensor.dtype, tensor.requires_grad) for name, tensor in tensors.items()},
        "persistent": list(model.state_dict()),
        "values": tensors,
    }


def assert_equal(built: nn.Module, expected: nn.Module) -> None:
    found, wanted = parts(built), parts(expected)
    for what in ("modules", "tensors", "persistent"):
        assert found[what] == wanted[what]
    assert all(torch.equal(tensor, wanted["values"][name]) for name, tensor in found["values"].items())
    assert all(p.is_contiguous() for p in built.parameters())


def assert_bare(model: nn.Module) -> None:
    """Nothing of how it was built stays behind."""
    assert not any(module._load_state_dict_pre_hooks for module in model.modules())
    assert not torch_module._global_parameter_registration_hooks
    pickle.dumps(model)


def mapped(tensor: Tensor, file: Path) -> bool:
    """Say whether a tensor's memory is the pages of a file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5)
        first, last = (int(address, 16) for address in span.split("-"))
        if first <= tensor.data_ptr() < last:
            return name == str(file.resolve())
    return False


def run(model: nn.Module, size: int) -> Any:
    return run_aligned(model, torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)))


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


# By name


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Serve ``hub/user/repo/file`` of a directory in place of the Hub, and list what is asked for."""
    asked: list[dict[str, Any]] = []

    def download(repo_id: str, filename: str, **options: Any) -> str:
        asked.append({"file": f"{repo_id}/{filename}", **options})
        path = tmp_path / "hub" / repo_id / filename
        if not path.is_file():
            raise LocalEntryNotFoundError(f"no {filename}")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


ACCESS: dict[str, Any] = {"revision": "v1", "token": "t", "cache_dir": Path("c"), "force_download": True}


def test_name_of_timms_registry(tmp_path: Path, hub: list[dict[str, Any]]) -> None:
    expected = scramble(timm.create_model("test_vit"))
    (tmp_path / "hub" / "timm" / "test_vit.r160_in1k").mkdir(parents=True)
    save_file(expected.state_dict(), tmp_path / "hub" / "timm" / "test_vit.r160_in1k" / "model.safetensors")
    built = build_base("timm", BaseRequest("test_vit.r160_in1k", **ACCESS))
    assert hub == [{"file": "timm/test_vit.r160_in1k/model.safetensors", "local_files_only": False, **ACCESS}]
    assert_equal(built, expected)
    anatomy = read_anatomy(built)
    assert (anatomy.model_name, anatomy.model_revision) == ("test_vit.r160_in1k", "v1")
    assert built.pretrained_cfg["mean"] == get_pretrained_cfg("test_vit.r160_in1k").mean  # type: ignore[index, union-attr]


@pytest.mark.parametrize("name", ["me/vit", "hf-hub:me/vit"])
def test_timm_repository_on_the_hub(name: str, tmp_path: Path, hub: list[dict[str, Any]]) -> None:
    folder = timm_folder(tmp_path / "hub" / "me" / "vit", *TIMM["vit"])
    torch.save({"never": "read"}, folder / "pytorch_model.bin")
    built = build_base("timm", BaseRequest(name, **ACCESS))
    assert [request["file"] for request in hub] == ["me/vit/config.json", "me/vit/model.safetensors"]
    assert all(request["revision"] == "v1" for request in hub)
    assert_equal(built, timm.create_model(f"local-dir:{folder}", pretrained=True))
    assert read_anatomy(built).model_name == name


def test_timm_model_knows_its_name() -> None:
    def named(**cfg: Any) -> tuple[str | None, str | None]:
        model = timm.create_model("test_vit")
        model.pretrained_cfg = cfg
        anatomy = read_anatomy(model)
        return anatomy.model_name, anatomy.model_revision

    assert named(architecture="test_vit", tag="r160_in1k") == ("test_vit.r160_in1k", None)
    assert named(architecture="test_vit") == ("test_vit", None)
    assert named() == (None, None)
    assert named(architecture="test_vit", source="local-dir", file="/home/me/vit") == (None, None)
    on_hub = partial(named, architecture="test_vit", tag="r160_in1k", source="hf-hub")
    assert on_hub(hf_hub_id="me/vit@v2") == ("hf-hub:me/vit", "v2")
    assert on_hub(hf_hub_id="timm/test_vit.r160_in1k") == ("test_vit.r160_in1k", None)


def test_timm_reads_no_pickle(tmp_path: Path, hub: list[dict[str, Any]]) -> None:
    folder = timm_folder(tmp_path / "hub" / "me" / "vit", *TIMM["vit"])
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"cannot fetch model\.safetensors of me/vit"):
        build_base("timm", BaseRequest("me/vit"))
    with pytest.raises(ConfigError, match=r"holds no model\.safetensors"):
        build_base("timm", BaseRequest("", folder))


def test_name_and_tag_of_open_clip(tmp_path: Path, hub: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = open_clip_folder(tmp_path / "hub" / "me" / "clip", OPEN_CLIP["own"])
    config = {"hf_hub": "me/clip/", "mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bicubic"}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny", OPEN_CLIP["own"])
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny", {"v1": config})
    built = build_base("open_clip", BaseRequest("tiny:v1", **ACCESS))
    assert hub == [{"file": "me/clip/open_clip_model.safetensors", "local_files_only": False, **ACCESS}]
    assert_equal(built, open_clip.create_model(f"local-dir:{folder}"))
    anatomy = read_anatomy(built)
    assert (anatomy.model_name, anatomy.image_std) == ("tiny:v1", (0.25,) * 3)
    # A repository may name its file, and hold it as safetensors beside the pickle.
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny", {"v1": {**config, "hf_hub": "me/clip/weights.bin"}})
    torch.save(load_file(folder / "open_clip_model.safetensors"), folder / "weights.bin")
    hub.clear()
    assert_equal(build_base("open_clip", BaseRequest("tiny:v1")), built)
    assert [request["file"] for request in hub] == ["me/clip/weights.safetensors", "me/clip/weights.bin"]
    with pytest.raises(ConfigError, match="tags it has: v1"):
        build_base("open_clip", BaseRequest("tiny:v2"))


def test_open_clip_repository_on_the_hub(tmp_path: Path, hub: list[dict[str, Any]]) -> None:
    folder = open_clip_folder(tmp_path / "hub" / "me" / "clip", OPEN_CLIP["own"])
    built = build_base("open_clip", BaseRequest("hf-hub:me/clip", arguments={"part": "visual"}, **ACCESS))
    assert_equal(built, open_clip.create_model(f"local-dir:{folder}").visual)
    assert {request["revision"] for request in hub} == {"v1"}


def test_open_clip_tag_is_never_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None) -> None:
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny", OPEN_CLIP["own"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match="tags it has: none"):
        build_base("open_clip", BaseRequest("tiny:weights.bin"))


def test_transformers_name_and_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole path over HTTP is tested with a Hub of our own; here, what transformers is asked."""
    asked = {}

    def from_pretrained(source: Any, **options: Any) -> Any:
        asked.update(source=source, **options)
        return transformers.ViTModel(transformers.ViTConfig(**TOWER)), {"missing_keys": [], "mismatched_keys": []}

    monkeypatch.setattr(transformers.ViTModel, "from_pretrained", from_pretrained)
    built = build_base("transformers", BaseRequest("me/vit", arguments={"architecture": "ViTModel"}, **ACCESS))
    assert {name: asked[name] for name in ACCESS} == ACCESS
    assert asked["source"] == "me/vit" and "trust_remote_code" not in asked
    anatomy = read_anatomy(built)
    assert (anatomy.model_name, anatomy.model_revision) == ("me/vit", "v1")


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("inside", ["", "vision_config"])
def test_config_of_a_base_model_names_no_code(inside: str, pretrained: bool, tmp_path: Path) -> None:
    architecture, config = TRANSFORMERS["clip"]
    getattr(transformers, architecture)(config()).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (fields[inside] if inside else fields)["attn_implementation"] = "someone/kernel"
    (tmp_path / "config.json").write_text(json.dumps(fields))
    request = BaseRequest("", tmp_path, arguments={"architecture": architecture}, pretrained=pretrained)
    built = build_base("transformers", request)
    assert built.config._attn_implementation == built.config.vision_config._attn_implementation == "sdpa"


def test_transformers_model_knows_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = transformers.ViTModel(transformers.ViTConfig(**TOWER))
    assert read_anatomy(model).model_name is None
    model.name_or_path = "me/vit"
    assert read_anatomy(model).model_name == "me/vit"
    (tmp_path / "me" / "vit").mkdir(parents=True)
    assert read_anatomy(model).model_name is None


def test_local_path_that_looks_like_a_name_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers.Dinov2Model(transformers.Dinov2Config(**TOWER)).save_pretrained(tmp_path / "me" / "dino")
    monkeypatch.chdir(tmp_path)
    arguments = {"architecture": "Dinov2Model"}
    with pytest.raises(ConfigError, match="is a local path as well"):
        build_base("transformers", BaseRequest("me/dino", arguments=arguments))


# Refused


@pytest.mark.parametrize(
    ("library", "name", "arguments"),
    [
        ("timm", "test_vit", {"num_classes": 10**9}),
        ("timm", "test_vit", {"num_classes": -1}),
        ("timm", "test_vit", {"num_classes": True}),
        ("timm", "test_vit", {"in_chans": 10**6}),
        ("timm", "test_vit", {"img_size": [10**6, 10**6]}),
        ("timm", "test_vit", {"img_size": [16]}),
        ("timm", "test_vit", {"img_size": "16"}),
        ("timm", "test_vit", {"global_pool": "../x"}),
        ("timm", "test_vit", {"dynamic_img_size": 1}),
        ("timm", "test_vit", {"checkpoint_path": "/etc/passwd"}),
        ("timm", "test_vit", {"depth": 10**6}),
        ("open_clip", "ViT-B-32:openai", {"pretrained_image_path": "/etc/passwd"}),
        ("open_clip", "ViT-B-32:nothing", {}),
        ("open_clip", "nothing:nothing", {}),
        ("transformers", "me/vit", {}),
        ("transformers", "me/vit", {"architecture": "PreTrainedModel"}),
        ("transformers", "me/vit", {"architecture": "LlamaForCausalLM"}),
        ("transformers", "me/vit", {"architecture": "pipeline"}),
        ("transformers", "me/vit", {"architecture": "ViTModel", "trust_remote_code": True}),
        ("torchvision", "tiny_vit:V9", {}),
        ("torchvision", "tiny_vit", {}),
        ("timm", "vit_giant_patch14_224", {}),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_fetched(
    library: str, name: str, arguments: dict[str, Any], offline: None
) -> None:
    with pytest.raises(ConfigError):
        build_base(library, BaseRequest(name, arguments=arguments))


def test_torchvision_has_neither_directories_nor_revisions(tmp_path: Path) -> None:
    for where in ({"directory": tmp_path}, {"revision": "v1"}):
        with pytest.raises(ConfigError, match="torchvision builds by name and weights"):
            build_base("torchvision", BaseRequest("tiny_vit:V1", **where))  # type: ignore[arg-type]


def test_torchvision_fetches_nothing_when_told_not_to(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="local_files_only=True forbids"):
        build_base("torchvision", BaseRequest("tiny_vit:V1", cache_dir=tmp_path, local_files_only=True))


def test_unknown_library_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="models of nothing cannot be built"):
        build_base("nothing", BaseRequest("x"))
    with pytest.raises(UnsupportedModelError, match="models of no library cannot be built"):
        build_base("", BaseRequest("x"))


# Others


def test_registered_backbone_builds_the_models_of_its_library() -> None:
    def build(request: BaseRequest) -> nn.Module:
        return nn.Linear(1, len(request.name))

    register_backbone(Backbone("theirs", "theirs", "for this test", lambda model: None))
    register_backbone(Backbone("theirs_too", "theirs", "for this test", lambda model: None, build))
    try:
        built: Any = build_base("theirs", BaseRequest("abc"))
    finally:
        del registered["theirs"], registered["theirs_too"]
    assert built.out_features == 3


def test_token_is_not_printed() -> None:
    assert "secret" not in repr(BaseRequest("x", token="secret"))
