"""A checkpoint alone gives the video model that was saved, on the base that it names; nothing else is read."""

import copy
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.backbones import BaseRequest, build_base, build_classifier, read_anatomy
from aim_adapters.checkpoint import video_model
from aim_adapters.checkpoint.video_model import load_video_model
from aim_adapters.core import only_root
from aim_adapters.errors import CheckpointError, ConfigError
from aim_adapters.storage.files import CONFIG_NAME, WEIGHTS_NAME
from tests.alignment import is_aligned, run_aligned
from tests.backbones.bases import OPEN_CLIP, TIMM, TOWER, mapped, open_clip_folder, timm_folder
from tests.backbones.cases import scramble, wake
from tests.checkpoint.cases import watch_opens
from tests.loopback_hub import LoopbackHub

FRAMES = 4
TOKEN = "hf_secret"


def run(model: nn.Module, size: int = 32) -> Tensor:
    out: Tensor = run_aligned(model, torch.randn(2, FRAMES, 3, size, size, generator=torch.Generator().manual_seed(0)))
    return out


def train(model: nn.Module, **arguments: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return wake(aim.wrap_image_model(model, **{"num_frames": FRAMES, "num_classes": 6, **arguments}))


def rewrite(checkpoint: Path, **fields: Any) -> Path:
    """Change a checkpoint's config, in the file and in the header."""
    with safe_open(checkpoint / WEIGHTS_NAME, framework="pt") as file:
        metadata = file.metadata()
    config = {**json.loads(metadata["aim_config"]), **fields}
    save_file(
        load_file(checkpoint / WEIGHTS_NAME), checkpoint / WEIGHTS_NAME, {**metadata, "aim_config": json.dumps(config)}
    )
    (checkpoint / CONFIG_NAME).write_text(json.dumps(config))
    return checkpoint


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return timm_folder(tmp_path / "base", *TIMM["vit"])


@pytest.fixture
def trained(base: Path) -> nn.Module:
    return train(timm.create_model(f"local-dir:{base}", pretrained=True))


@pytest.fixture
def checkpoint(trained: nn.Module, tmp_path: Path) -> Path:
    return aim.save_adapters(trained, tmp_path / "out", base_model_name_or_path="me/vit", base_model_revision="v1")


def refuse(match: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(CheckpointError, match=match):
        load_video_model(*arguments, **options)


# What comes back


def test_model_is_the_one_that_was_saved(checkpoint: Path, base: Path, trained: nn.Module) -> None:
    model = load_video_model(checkpoint, base_model=base)
    assert torch.equal(run(model), run(trained))
    assert not any(module.training for module in model.modules())
    assert list(model.state_dict()) == list(trained.state_dict())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == {
        n: p.requires_grad for n, p in trained.named_parameters()
    }
    assert load_video_model(str(checkpoint), base_model=f"local-dir:{base}") is not model


def test_source_is_opened_once(checkpoint: Path, base: Path) -> None:
    with watch_opens(checkpoint) as opened:
        load_video_model(checkpoint, base_model=base)
        assert opened() == {CONFIG_NAME: 1, WEIGHTS_NAME: 1}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_base_weights_are_the_pages_of_their_file(checkpoint: Path, base: Path) -> None:
    model = load_video_model(checkpoint, base_model=base)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert len(frozen) > 20
    assert all(mapped(p, base / "model.safetensors") for p in frozen)


def test_what_was_trained_is_aligned_wherever_it_begins_in_its_file(checkpoint: Path, base: Path) -> None:
    """One clip makes one row for the classifier, whose last digits may depend on where its weights begin."""
    assert not all(map(is_aligned, load_file(checkpoint / WEIGHTS_NAME).values()))
    model = load_video_model(checkpoint, base_model=base)
    assert all(is_aligned(p) for p in model.parameters() if p.requires_grad)


def test_model_remembers_which_base_it_has(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    model = load_video_model(checkpoint, base_model=base)
    aim.save_adapters(model, tmp_path / "again")
    before, after = (json.loads((path / CONFIG_NAME).read_text()) for path in (checkpoint, tmp_path / "again"))
    assert after["base_model_name_or_path"] == before["base_model_name_or_path"] == "me/vit"
    assert after["base_model_arguments"] == before["base_model_arguments"]
    assert read_anatomy(aim.unwrap_image_model(model)).model_revision == "v1"


def test_copied_classification_layer_comes_back(base: Path, tmp_path: Path) -> None:
    """A head of the base that its file does not hold was random, and its trained copy is in the checkpoint."""
    image_model = timm.create_model(f"local-dir:{base}", pretrained=True, num_classes=9)
    model = train(image_model, num_classes=None)
    aim.save_adapters(model, tmp_path / "out", base_model_name_or_path="me/vit")
    loaded = load_video_model(tmp_path / "out", base_model=base)
    assert run(loaded).shape == (2, 9)
    assert torch.equal(run(loaded), run(model))


@pytest.mark.parametrize("library", ["open_clip", "transformers"])
def test_other_libraries(library: str, tmp_path: Path) -> None:
    if library == "open_clip":
        open_clip_folder(tmp_path / "base", OPEN_CLIP["own"])
        image_model: Any = open_clip.create_model(f"local-dir:{tmp_path / 'base'}").visual
    else:
        config = transformers.ViTConfig(**TOWER, num_labels=5)
        scramble(transformers.ViTForImageClassification(config)).save_pretrained(tmp_path / "base")
        image_model = transformers.ViTForImageClassification.from_pretrained(tmp_path / "base")
    model = train(image_model)
    aim.save_adapters(model, tmp_path / "out")
    loaded = load_video_model(tmp_path / "out", base_model=tmp_path / "base")
    outputs = [copy.deepcopy(model).eval()(torch.ones(1, FRAMES, 3, 16, 16)) for model in (model, loaded)]
    found, expected = (out if isinstance(out, Tensor) else out.logits for out in outputs)
    assert torch.equal(found, expected)


def test_base_without_weights_takes_a_full_state_dict(checkpoint: Path, base: Path, trained: nn.Module) -> None:
    (base / "model.safetensors").unlink()
    model = load_video_model(checkpoint, base_model=base, pretrained=False)
    assert not torch.allclose(run(model), run(trained))
    model.load_state_dict(trained.state_dict())
    assert torch.equal(run(model), run(trained))


def test_everything_needed_is_in_what_is_asked_of_the_library(checkpoint: Path, monkeypatch: Any) -> None:
    asked = []

    def build(library: str, request: BaseRequest) -> nn.Module:
        asked.append((library, request))
        raise OSError("enough")

    monkeypatch.setattr(video_model, "build_base", build)
    access: dict[str, Any] = {"cache_dir": "c", "token": "t", "force_download": True}
    arguments = {"num_classes": 5, "in_chans": 3, "global_pool": "token", "img_size": [32, 32]}
    refuse("enough", checkpoint, **access)
    assert asked.pop() == ("timm", BaseRequest("me/vit", None, "v1", arguments, **access))
    refuse("enough", checkpoint, base_model_revision="v2", pretrained=False, local_files_only=True)
    assert asked.pop() == (
        "timm", BaseRequest("me/vit", None, "v2", arguments, pretrained=False, local_files_only=True),
    )  # fmt: skip
    refuse("enough", checkpoint, base_model="you/vit")  # the revision is of the base in the config
    assert asked.pop() == ("timm", BaseRequest("you/vit", None, None, arguments))


# Another base


def test_default_device_is_left_alone(checkpoint: Path, base: Path, trained: nn.Module) -> None:
    with torch.device("meta"):
        model = load_video_model(checkpoint, base_model=base)
        assert torch.empty(0).is_meta
    assert torch.equal(run(model), run(trained))


def test_other_name_is_taken_with_a_warning(
    trained: nn.Module, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aim.save_adapters(trained, tmp_path / "out", base_model_name_or_path="me/vit", base_model_revision="v1")
    monkeypatch.setattr(
        video_model,
        "build_base",
        lambda library, request: build_base(library, BaseRequest(request.name, base, arguments=request.arguments)),
    )
    with pytest.warns(UserWarning, match="trained on me/vit, this model is you/vit"):
        model = load_video_model(tmp_path / "out", base_model="you/vit")
    assert torch.equal(run(model), run(trained))
    assert only_root(model).state.anatomy.model_name == "you/vit"
    again = json.loads((aim.save_adapters(model, tmp_path / "again") / CONFIG_NAME).read_text())
    assert (again["base_model_name_or_path"], again["base_model_revision"]) == ("you/vit", None)


def test_base_of_another_shape_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    architecture, arguments = TIMM["vit"]
    other = timm_folder(tmp_path / "other", architecture, {**arguments, "depth": 3})
    refuse("trained on another base", checkpoint, base_model=other)


def test_incomplete_checkpoint_is_refused_under_another_name(
    checkpoint: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with safe_open(checkpoint / WEIGHTS_NAME, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(checkpoint / WEIGHTS_NAME)
    del state["temporal_embedding"]
    save_file(state, checkpoint / WEIGHTS_NAME, metadata)
    monkeypatch.setattr(
        video_model,
        "build_base",
        lambda library, request: build_base(library, BaseRequest(request.name, base, arguments=request.arguments)),
    )
    with pytest.warns(UserWarning, match="trained on me/vit"):
        refuse(r"does not fit .*missing=\('temporal_embedding',\)", checkpoint, base_model="you/vit")


@pytest.mark.parametrize(
    "base_model", ["./nowhere", "/nowhere/at/all", "~/vit", "a/b/c", "", Path("me/vit"), "me/vit@v1"]
)
def test_what_is_neither_a_directory_nor_a_name_is_refused(checkpoint: Path, base_model: Any) -> None:
    with pytest.raises(ConfigError, match="neither a directory nor the name of a model"):
        load_video_model(checkpoint, base_model=base_model)


def test_revision_of_a_directory_is_refused(checkpoint: Path, base: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory, which has no revision"):
        load_video_model(checkpoint, base_model=base, base_model_revision="v1")


# What a config may not do


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd", "../base", "./base", "me/../base", "..", "~/base", "local-dir:base", "local-dir:/base",
        "file:///base", "https://localhost/base", "hf-hub:/base", "hf-hub:../base", "hf-hub:", "a/b/c", "C:\\base",
        "base\n", "base\0", "me/vit@v1", " ", "x" * 100_000 + "/",
    ],
)  # fmt: skip
def test_name_in_a_config_is_never_followed_to_a_file(
    name: str, checkpoint: Path, base: Path, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(checkpoint, base_model_name_or_path=name)
    monkeypatch.chdir(base.parent)
    refuse("if you trust this path, pass it as base_model=", checkpoint)
    # Whoever says where the base is does not need the name.
    assert torch.equal(run(load_video_model(checkpoint, base_model=base)), run(trained))


def test_revision_in_a_config_is_never_a_path(checkpoint: Path) -> None:
    refuse("base_model_revision must be a relative path", rewrite(checkpoint, base_model_revision="../../x"))


@pytest.mark.parametrize("arguments", [{"checkpoint_path": "/x"}, {"img_size": 10**9}, {"": 0}, {"num_classes": None}])
def test_arguments_in_a_config_are_checked(arguments: dict[str, Any], checkpoint: Path, base: Path) -> None:
    refuse("base model argument", rewrite(checkpoint, base_model_arguments=arguments), base_model=base)


def test_base_that_is_not_named_is_asked_for(checkpoint: Path) -> None:
    for name in (None, ""):
        refuse("names the base model None: pass base_model=", rewrite(checkpoint, base_model_name_or_path=name))


# What cannot be built


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"base_model_name_or_path": "nothing"}, "cannot be|cannot build the base model 'nothing' of timm"),
        ({"base_model_name_or_path": "test_vit.nothing"}, "cannot build the base model 'test_vit.nothing' of timm"),
        ({"base_model_name_or_path": "vit_giant_patch14_224"}, "timm has no pre-trained weights on the Hub"),
        ({"base_model_library": "nothing"}, "models of nothing cannot be built from a name"),
        ({"base_model_library": ""}, "models of no library cannot be built from a name"),
        ({"base_model_library": "open_clip", "base_model_arguments": {}}, "of open_clip"),
        ({"base_model_library": "torchvision", "base_model_arguments": {}}, "of torchvision"),
        ({"base_model_library": "transformers", "base_model_arguments": {}}, "of transformers"),
    ],
)
def test_base_that_cannot_be_built_says_why_and_what_to_do(fields: Any, match: str, checkpoint: Path) -> None:
    rewrite(checkpoint, base_model_revision=None, **{"base_model_name_or_path": "nothing", **fields})
    refuse(match, checkpoint)
    refuse(r"build it yourself and call aim\.load_adapters\(model, '.*out'\)", checkpoint)


def test_library_that_is_not_installed_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    refuse("of transformers: it is not installed", rewrite(checkpoint, base_model_library="transformers"))


def test_damaged_base_is_an_error(checkpoint: Path, base: Path) -> None:
    content = (base / "model.safetensors").read_bytes()
    for damaged in (b"", content[:100], content[:-1]):
        (base / "model.safetensors").write_bytes(damaged)
        refuse("cannot build the base model", checkpoint, base_model=base)
    (base / "model.safetensors").write_bytes(content)
    (base / "config.json").write_text("[]")
    refuse("cannot build the base model", checkpoint, base_model=base)


# On the Hub: these run in another process, see loopback_hub.py


def upload(hub: LoopbackHub, repo_id: str, folder: Path) -> str:
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}
    return next(reversed(hub.add(repo_id, files).commits))


def base_and_adapter_come_from_the_hub(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "base", *TIMM["vit"])
    upload(hub, "me/vit", folder)
    model = train(timm.create_model("hf-hub:me/vit", pretrained=True))
    aim.save_adapters(model, tmp_path / "out")
    upload(hub, "me/aim-vit", tmp_path / "out")
    for options in ({}, {"local_files_only": True}):
        loaded = load_video_model("me/aim-vit", **options)
        assert torch.equal(run(loaded), run(model))
        hub.faults.update({" model.safetensors": "500", " config.json": "500", f" {WEIGHTS_NAME}": "500"})
    assert read_anatomy(aim.unwrap_image_model(loaded)).model_name == "hf-hub:me/vit"


def pinned_base_is_the_one_that_is_loaded(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "base", *TIMM["vit"])
    first = upload(hub, "me/pinned-vit", folder)
    model = train(timm.create_model(f"hf-hub:me/pinned-vit@{first}", pretrained=True))
    aim.save_adapters(model, tmp_path / "out", base_model_revision=first)
    upload(hub, "me/aim-pinned", tmp_path / "out")
    later = {key: tensor + 1 for key, tensor in load_file(folder / "model.safetensors").items()}
    save_file(later, folder / "model.safetensors")
    hub.repos["me/pinned-vit"].commit({"model.safetensors": (folder / "model.safetensors").read_bytes()})
    assert torch.equal(run(load_video_model("me/aim-pinned")), run(model))
    with pytest.warns(UserWarning, match="does not hold the weights that the adapters were trained on"):
        other = load_video_model("me/aim-pinned", base_model_revision="main")
    assert not torch.equal(run(other), run(model))


def transformers_base_is_pinned_too(hub: LoopbackHub, tmp_path: Path) -> None:
    config = transformers.ViTConfig(**TOWER, num_labels=5)
    scramble(transformers.ViTForImageClassification(config)).save_pretrained(tmp_path / "base")
    first = upload(hub, "me/hf-vit", tmp_path / "base")
    image_model = transformers.ViTForImageClassification.from_pretrained("me/hf-vit")
    aim.save_adapters(train(image_model), tmp_path / "out", base_model_revision=first)
    hub.repos["me/hf-vit"].commit({"model.safetensors": b"something else"})
    loaded = load_video_model(tmp_path / "out")
    video = torch.ones(1, FRAMES, 3, 16, 16)
    assert torch.equal(loaded(video).logits, image_model.eval()(video).logits)  # both are the pages of one file


def transformers_base_by_name_knows_its_normalization(hub: LoopbackHub, tmp_path: Path) -> None:
    config = transformers.ViTConfig(**TOWER, num_labels=5)
    scramble(transformers.ViTForImageClassification(config)).save_pretrained(tmp_path / "base")
    transformers.ViTImageProcessor(image_mean=[0.5, 0.25, 0.125]).save_pretrained(tmp_path / "base")
    upload(hub, "me/hf-processed", tmp_path / "base")
    model = build_classifier("transformers:me/hf-processed")
    assert aim.clip_spec(aim.wrap_image_model(model, FRAMES)).mean == (0.5, 0.25, 0.125)


def missing_base_says_so_and_keeps_the_token(hub: LoopbackHub, tmp_path: Path) -> None:
    model = train(timm.create_model(f"local-dir:{timm_folder(tmp_path / 'base', *TIMM['vit'])}", pretrained=True))
    aim.save_adapters(model, tmp_path / "out", base_model_name_or_path="me/missing-vit")
    refuse("there is no such repository", tmp_path / "out")
    upload(hub, "me/missing-vit", tmp_path / "base")
    refuse("the repository has no such revision", tmp_path / "out", base_model_revision="v9")
    hub.faults[" config.json"] = "400"  # the answer quotes what was sent
    arguments = {"architecture": "ViTModel"}
    for fields in ({}, {"base_model_library": "transformers", "base_model_arguments": arguments}):
        rewrite(tmp_path / "out", **fields)
        hub.requests.clear()
        with pytest.raises(CheckpointError) as caught:
            load_video_model(tmp_path / "out", token=TOKEN)
        assert f"Bearer {TOKEN}" in {request.headers.get("authorization") for request in hub.requests}
        assert TOKEN not in "".join(traceback.format_exception(caught.type, caught.value, caught.tb))


SCENARIOS = [
    base_and_adapter_come_from_the_hub,
    pinned_base_is_the_one_that_is_loaded,
    transformers_base_is_pinned_too,
    transformers_base_by_name_knows_its_normalization,
    missing_base_says_so_and_keeps_the_token,
]


@pytest.mark.parametrize("name", [scenario.__name__ for scenario in SCENARIOS])
def test_on_the_hub(name: str, on_the_hub: dict[str, str]) -> None:
    assert not on_the_hub[name], on_the_hub[name]
