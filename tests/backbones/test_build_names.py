"""A base model is found by name and revision, nothing but its files is read, and what cannot be built is refused."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError
from open_clip import factory, pretrained
from safetensors.torch import load_file, save_file
from timm.models import get_pretrained_cfg
from torch import nn

from aim_adapters.backbones import Backbone, BaseRequest, _fetch, build_base, read_anatomy, register_backbone
from aim_adapters.backbones.registry import _registered as registered
from aim_adapters.errors import CheckpointError, ConfigError, UnsupportedModelError
from tests.backbones.bases import (
    OPEN_CLIP,
    TIMM,
    TOWER,
    TRANSFORMERS,
    assert_equal,
    open_clip_folder,
    timm_folder,
)
from tests.backbones.cases import scramble

pytestmark = pytest.mark.usefixtures("tiny_models")

# By name


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Serve ``hub/user/repo/file`` of a directory in place of the Hub, and list what is asked for."""
    asked: list[dict[str, Any]] = []

    def download(repo_id: str, filename: str, **options: Any) -> Path:
        asked.append({"file": f"{repo_id}/{filename}", **options})
        path = tmp_path / "hub" / repo_id / filename
        if not path.is_file():
            raise LocalEntryNotFoundError(f"no {filename}")
        return path

    monkeypatch.setattr(_fetch, "download", download)
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


def test_transformers_name_and_revision(
    tmp_path: Path, hub: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole path over HTTP is tested with a Hub of our own; here, what transformers is asked."""
    asked = {}

    def from_pretrained(source: Any, **options: Any) -> Any:
        asked.update(source=source, **options)
        return transformers.ViTModel(transformers.ViTConfig(**TOWER)), {"missing_keys": [], "mismatched_keys": []}

    monkeypatch.setattr(transformers.ViTModel, "from_pretrained", from_pretrained)
    (tmp_path / "hub" / "me" / "vit").mkdir(parents=True)
    save_file({"x": torch.zeros(1)}, tmp_path / "hub" / "me" / "vit" / "model.safetensors")
    built = build_base("transformers", BaseRequest("me/vit", arguments={"architecture": "ViTModel"}, **ACCESS))
    assert {name: asked[name] for name in ACCESS} == ACCESS
    assert asked["source"] == "me/vit" and "trust_remote_code" not in asked
    assert asked["use_safetensors"] is True
    assert hub == [{"file": "me/vit/model.safetensors", "local_files_only": False, **ACCESS}]
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
