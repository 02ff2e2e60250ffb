"""A base model that asks for more than its weights hold, or has a pickle for them, is refused before it is built."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError
from open_clip import factory, pretrained
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules import module as torch_module

from aim_adapters.anatomy import fingerprint
from aim_adapters.backbones import BaseRequest, build_base, read_anatomy
from aim_adapters.errors import CheckpointError, ConfigError
from tests.backbones.bases import (
    OPEN_CLIP,
    TIMM,
    TRANSFORMERS,
    assert_equal,
    open_clip_folder,
    timm_folder,
    tiny_swin,
    tiny_vit,
    torchvision_file,
)
from tests.memory import at_most
from tests.storage.pickle_cases import PROTO, archive

pytestmark = pytest.mark.usefixtures("tiny_models")


def folder_of(library: str, name: str, folder: Path) -> BaseRequest:
    """Write a base model and return the request for it."""
    if library == "timm":
        return BaseRequest("", timm_folder(folder, *TIMM[name]))
    if library == "open_clip":
        return BaseRequest("", open_clip_folder(folder, OPEN_CLIP[name]))
    if library == "torchvision":
        torchvision_file(folder, {"tiny_vit": tiny_vit, "tiny_swin": tiny_swin}[name]())
        return BaseRequest(f"{name}:V1", cache_dir=folder, local_files_only=True)
    architecture, config = TRANSFORMERS[name]
    getattr(transformers, architecture)(config()).save_pretrained(folder)
    return BaseRequest("", folder, arguments={"architecture": architecture})


MODELS = [
    *(("timm", name) for name in TIMM), *(("open_clip", name) for name in OPEN_CLIP),
    *(("transformers", name) for name in TRANSFORMERS), ("torchvision", "tiny_vit"), ("torchvision", "tiny_swin"),
]  # fmt: skip


@pytest.mark.parametrize(("library", "name"), MODELS)
def test_model_is_checked_without_memory_before_it_is_built(
    library: str, name: str, tmp_path: Path, caplog: Any
) -> None:
    request, prints = folder_of(library, name, tmp_path), []
    caplog.clear()

    def check(draft: nn.Module) -> None:
        assert all(tensor.is_meta for tensor in draft.state_dict().values())
        anatomy = read_anatomy(draft)
        prints.append(fingerprint(draft.get_submodule(anatomy.root), anatomy))

    built = build_base(library, replace(request, check=check))
    anatomy = read_anatomy(built)
    assert prints == [fingerprint(built.get_submodule(anatomy.root), anatomy)]
    assert not any(tensor.is_meta for tensor in built.state_dict().values())
    assert not torch_module._global_module_registration_hooks
    assert not torch_module._global_parameter_registration_hooks
    assert not [record for record in caplog.records if "initialized randomly" in record.getMessage()]


HOSTILE: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "timm layers": ("timm", "vit", {"depth": 10**9}, "asks for depth=1000000000"),
    "timm stages": ("timm", "swin", {"depths": [10**9]}, "asks for depths=1000000000"),
    "timm width": ("timm", "vit", {"embed_dim": 8192}, "more than|values, but its weights"),
    "timm tokens": ("timm", "vit", {"reg_tokens": 10**9}, "the most that is built"),
    "open_clip layers": ("open_clip", "own", {"layers": 10**6}, "more than 4,000 modules"),
    "open_clip width": ("open_clip", "own", {"width": 8192}, "values, but its weights"),
    "transformers layers": ("transformers", "vit", {"num_hidden_layers": 10**6}, "more than 4,000 modules"),
    "transformers width": ("transformers", "vit", {"hidden_size": 8192, "num_attention_heads": 8}, "values, but its"),
    "transformers image": ("transformers", "vit", {"image_size": 10**9}, "the most that is built"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_config_that_asks_for_more_than_its_weights_hold(case: str, tmp_path: Path) -> None:
    library, name, fields, message = HOSTILE[case]
    request = replace(folder_of(library, name, tmp_path), check=lambda draft: None)
    path = tmp_path / ("open_clip_config.json" if library == "open_clip" else "config.json")
    config = json.loads(path.read_text())
    inner = {"timm": lambda: config["model_args"], "open_clip": lambda: config["model_cfg"]["vision_cfg"]}
    inner.get(library, lambda: config)().update(fields)
    path.write_text(json.dumps(config))
    with at_most(300), pytest.raises(CheckpointError, match=message):
        build_base(library, request)
    assert not torch_module._global_module_registration_hooks


def test_what_no_file_fills_takes_no_memory_without_a_check_either(tmp_path: Path) -> None:
    request = folder_of("transformers", "vit", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 10**7}))
    with at_most(300), pytest.raises(CheckpointError, match="more than its weights can fill"):
        build_base("transformers", request)


# Pickles


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Serve a folder in place of the Hub, through a cache that is laid out as the Hub's."""

    def download(repo_id: str, filename: str, **options: Any) -> str:
        path, cached = tmp_path / "hub" / repo_id / filename, tmp_path / "cache" / repo_id / "snapshots" / ("0" * 40)
        if not path.is_file():
            raise LocalEntryNotFoundError(f"no {filename}")
        cached.mkdir(parents=True, exist_ok=True)
        return shutil.copy(path, cached)

    def announce(*args: Any, **options: Any) -> None:
        raise OSError("there is no Hub to ask")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", announce)
    return tmp_path / "hub"


def into_pickle(folder: Path, safe: str, pickled: str) -> None:
    torch.save(load_file(folder / safe), folder / pickled)
    (folder / safe).unlink()


def test_repository_of_a_pickle_is_refused(hub: Path) -> None:
    into_pickle(
        open_clip_folder(hub / "me" / "clip", OPEN_CLIP["own"]),
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.bin",
    )
    with pytest.raises(CheckpointError, match=r"cannot fetch open_clip_model\.safetensors of me/clip"):
        build_base("open_clip", BaseRequest("hf-hub:me/clip"))
    with pytest.raises(ConfigError, match=r"holds no open_clip_model\.safetensors"):
        build_base("open_clip", BaseRequest("", hub / "me" / "clip"))
    request = folder_of("transformers", "vit", hub / "me" / "vit")
    into_pickle(hub / "me" / "vit", "model.safetensors", "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"cannot fetch model\.safetensors of me/vit"):
        build_base("transformers", BaseRequest("me/vit", arguments=request.arguments))
    with pytest.raises(ConfigError, match=r"holds no model\.safetensors"):
        build_base("transformers", request)


def test_pickle_in_a_librarys_own_list_is_read_with_no_trust(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_clip_folder(hub / "me" / "clip", OPEN_CLIP["own"])
    config = {"hf_hub": "me/clip/weights.bin", "mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bicubic"}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny", OPEN_CLIP["own"])
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny", {"v1": config})
    into_pickle(folder, "open_clip_model.safetensors", "weights.bin")
    built: Any = build_base("open_clip", BaseRequest("tiny:v1"))
    assert torch.equal(built.visual.conv1.weight, open_clip.create_model(f"local-dir:{folder}").visual.conv1.weight)
    hostile = archive(PROTO + b"})" + b"\x85" * 200_000 + b"Ns.")
    (folder / "weights.bin").write_bytes(hostile)
    (tmp_path / "tiny-00000000.pth").write_bytes(hostile)
    with pytest.raises(CheckpointError, match="out of proportion"):
        build_base("open_clip", BaseRequest("tiny:v1"))
    with pytest.raises(CheckpointError, match="out of proportion"):
        build_base("torchvision", BaseRequest("tiny_vit:V1", cache_dir=tmp_path))


def test_weights_in_several_files(hub: Path) -> None:
    request = folder_of("transformers", "vit", hub / "me" / "vit")
    folder, state = hub / "me" / "vit", load_file(hub / "me" / "vit" / "model.safetensors")
    expected = build_base("transformers", request)
    (folder / "model.safetensors").unlink()
    parts = {key: f"part-{i % 2}.safetensors" for i, key in enumerate(state)}
    for part in set(parts.values()):
        save_file({key: state[key] for key in state if parts[key] == part}, folder / part, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    built = build_base("transformers", request)
    assert_equal(built, expected)
    for bad in ([1], {"a": "pickle.bin"}, {"a": "../x.safetensors"}):
        index.write_text(json.dumps({"weight_map": bad}))
        for each in (request, BaseRequest("me/vit", arguments=request.arguments)):
            with pytest.raises(CheckpointError, match="weight_map"):
                build_base("transformers", each)
