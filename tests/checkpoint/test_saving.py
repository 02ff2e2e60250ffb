"""What was trained is saved whole and loads to the bit; everything else is refused and changes nothing."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.storage import files as checkpoint_files
from aim_adapters.anatomy import fingerprint
from aim_adapters.backbones import read_anatomy
from aim_adapters.errors import CheckpointError, ConfigError, StateError
from aim_adapters.storage.files import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME
from tests.backbones.contract import assert_same, scramble, snapshot, wake

SIZE: dict[str, Any] = {
    "img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5,
}  # fmt: skip
FRAMES = 4
PREPROCESSING = {"mean": (0.5, 0.25, 0.125), "std": (1.0, 0.5, 0.25)}
ADAPTER = ("down_proj.weight", "down_proj.bias", "up_proj.weight", "up_proj.bias")

Edit = Callable[[dict[str, Any]], Any]


def base(name: str | None = None, **changes: Any) -> VisionTransformer:
    """Return the image model, with the same random weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VisionTransformer(**{**SIZE, **changes})
    if name is not None:
        architecture, _, tag = name.partition(".")
        model.pretrained_cfg = {"architecture": architecture, "tag": tag, **PREPROCESSING}
    return scramble(model).eval()


def wrapped(name: str | None = None, **arguments: Any) -> VisionTransformer:
    return aim.wrap_image_model(base(name), **{"num_frames": FRAMES, **arguments})


def trained(name: str | None = None, **arguments: Any) -> VisionTransformer:
    """Return a wrapped model, with the same random adapters each time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return wake(wrapped(name, **arguments))


def run(model: nn.Module, frames: int = FRAMES, dtype: torch.dtype = torch.float32) -> Tensor:
    video = torch.randn(2, frames, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(video.to(dtype))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def header(directory: Path) -> dict[str, str]:
    with safe_open(directory / WEIGHTS_NAME, framework="pt") as file:
        return file.metadata()


def rewrite(directory: Path, *, tensors: Edit | None = None, config: Edit | None = None, beside: bool = True) -> None:
    """Edit a checkpoint's tensors, and its config in the header and (``beside``) in the file."""
    state, metadata = load_file(directory / WEIGHTS_NAME), header(directory)
    fields = json.loads(metadata["aim_config"])
    if tensors is not None:
        tensors(state)
    if config is not None:
        config(fields)
        metadata["aim_config"] = json.dumps(fields)
        if beside:
            (directory / CONFIG_NAME).write_text(json.dumps(fields), encoding="utf-8")
    save_file(state, directory / WEIGHTS_NAME, metadata=metadata)


def assert_refused(
    model: nn.Module,
    directory: Path,
    match: str,
    *,
    error: type[Exception] = CheckpointError,
    **arguments: Any,
) -> None:
    """Check that loading raises and leaves the model as it was, wrapped or not."""
    before, was_wrapped = snapshot(model), aim.is_wrapped(model)
    with pytest.raises(error, match=match):
        aim.load_adapters(model, directory, **arguments)
    assert aim.is_wrapped(model) is was_wrapped
    assert_same(before, snapshot(model))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return a checkpoint of a model wrapped with the defaults."""
    return aim.save_adapters(trained(), tmp_path / "saved")


@pytest.fixture(params=["wrapped", "unwrapped"])
def fresh(request: pytest.FixtureRequest) -> VisionTransformer:
    """Return a model that the checkpoint of ``saved`` fits, before loading."""
    model = wrapped() if request.param == "wrapped" else base()
    next(model.parameters()).requires_grad_(False)
    return model


# Files


def test_directory_holds_three_files_and_is_returned(tmp_path: Path) -> None:
    path = aim.save_adapters(trained(), str(tmp_path / "new" / "nested"))
    assert path == tmp_path / "new" / "nested"
    assert names(path) == sorted([CARD_NAME, CONFIG_NAME, WEIGHTS_NAME])


@pytest.mark.parametrize(
    ("arguments", "adapters", "more"),
    [
        ({}, ("temporal", "spatial", "joint"), {"temporal_embedding", "norm", "head"}),
        (
            {"temporal_input_adapter": True},
            ("temporal", "temporal_input", "spatial", "joint"),
            {"temporal_embedding", "norm", "head"},
        ),
        ({"components": ("spatial",), "num_classes": 0}, ("spatial",), {"norm"}),
        ({"components": (), "train_norm": False}, (), {"head"}),
    ],
)
def test_keys_name_roles_and_nothing_of_the_base(
    arguments: dict[str, Any], adapters: tuple[str, ...], more: set[str], tmp_path: Path
) -> None:
    model = trained(**arguments)
    aim.save_adapters(model, tmp_path)
    expected = {f"blocks.{i}.{name}.{part}" for i in range(3) for name in adapters for part in ADAPTER}
    for name in more:
        expected |= {name} if name == "temporal_embedding" else {f"{name}.weight", f"{name}.bias"}
    state = load_file(tmp_path / WEIGHTS_NAME)
    assert set(state) == expected
    assert sum(tensor.numel() for tensor in state.values()) == aim.count_parameters(model).trainable
    content = (tmp_path / WEIGHTS_NAME).read_bytes()
    assert not any(tensor.numpy().tobytes() in content for tensor in base().state_dict().values())


def test_tensors_are_the_models_own(tmp_path: Path) -> None:
    model = trained()
    aim.save_adapters(model, tmp_path)
    state, ours = load_file(tmp_path / WEIGHTS_NAME), aim.adapter_state_dict(model)
    assert all(torch.equal(tensor, ours[key]) for key, tensor in state.items())


def test_tensors_of_any_strides_are_saved(tmp_path: Path) -> None:
    model = trained()
    weight = model.blocks[1].aim.joint.up_proj.weight
    weight.data = weight.data.T.contiguous().T
    assert not weight.is_contiguous()
    aim.save_adapters(model, tmp_path)
    assert torch.equal(load_file(tmp_path / WEIGHTS_NAME)["blocks.1.joint.up_proj.weight"], weight)


def test_config_is_written_in_full(tmp_path: Path) -> None:
    model = base("vit_x.in1k")
    identity = fingerprint(model, read_anatomy(model))
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
        "attention": "auto",
        "input_layout": "auto",
        "base_model_name_or_path": "vit_x.in1k",
        "base_model_library": "timm",
        "base_model_revision": "abc",
        "base_model_arguments": dict(read_anatomy(base("vit_x.in1k")).build_arguments),
        "base_fingerprint": identity,
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
    # A model that was wrapped for a purpose of its own and starts from these weights has its own classes.
    aim.load_adapters(other, first)
    aim.save_adapters(other, tmp_path / "own")
    assert json.loads((tmp_path / "own" / CONFIG_NAME).read_text(encoding="utf-8"))["clip"]["labels"] is None


def test_labels_that_do_not_fit_the_classes_are_refused(saved: Path) -> None:
    rewrite(saved, config=lambda config: config["clip"].update(labels=["a", "b"]))
    for model in (base(), wrapped()):
        assert_refused(model, saved, "does not fit its tensors: got 2 labels for a model with 5 classes")


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


def test_model_without_weights_neither_loads_nor_saves(saved: Path, tmp_path: Path) -> None:
    with torch.device("meta"):
        bare, model = base(), wrapped()
    for call in (
        lambda: aim.load_adapters(bare, saved),
        lambda: aim.load_adapters(model, saved),
        lambda: aim.load_adapters(model, saved, name="new"),
        lambda: aim.load_adapter_state_dict(model, aim.adapter_state_dict(trained())),
        lambda: aim.save_adapters(model, tmp_path / "new"),
    ):
        with pytest.raises(StateError, match="on the meta device, without weights"):
            call()
    assert not aim.is_wrapped(bare) and list(aim.list_adapters(model)) == ["default"]
    assert not (tmp_path / "new").exists()


def test_what_is_not_known_is_null(saved: Path) -> None:
    config = json.loads((saved / CONFIG_NAME).read_text(encoding="utf-8"))
    assert [config[key] for key in ("base_model_name_or_path", "base_model_revision")] == [None, None]
    assert config["clip"] == {
        "frames": 4, "stride": None, "size": [16, 16], "mean": None, "std": None, "labels": None,
    }  # fmt: skip


def test_name_that_is_given_goes_before_the_librarys(tmp_path: Path) -> None:
    aim.save_adapters(trained("vit_x.in1k"), tmp_path, base_model_name_or_path="my/fork")
    assert json.loads((tmp_path / CONFIG_NAME).read_text(encoding="utf-8"))["base_model_name_or_path"] == "my/fork"


def test_header_holds_formats_version_and_the_whole_config(saved: Path) -> None:
    metadata = header(saved)
    config = json.loads(metadata.pop("aim_config"))
    assert metadata == {"format": "pt", "format_version": "1", "aim_version": aim.__version__}
    assert config == json.loads((saved / CONFIG_NAME).read_text(encoding="utf-8"))


def test_card_names_base_and_counts(tmp_path: Path) -> None:
    model = trained("vit_x.in1k")
    aim.save_adapters(model, tmp_path)
    card, count = (tmp_path / CARD_NAME).read_text(encoding="utf-8"), aim.count_parameters(model)
    for text in ("library_name: aim-adapters\n", "vit_x.in1k", f"{count.trainable:,} trained of {count.total:,}"):
        assert text in card


def test_existing_card_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / CARD_NAME).write_text("mine", encoding="utf-8")
    aim.save_adapters(trained(), tmp_path)
    assert (tmp_path / CARD_NAME).read_text(encoding="utf-8") == "mine"


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


def test_saving_into_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"file is a file; save_adapters expects a directory"):
        aim.save_adapters(trained(), tmp_path / "file")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


# Atomic writes


def fail_midway(state: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    path.write_bytes(b"half of a")
    raise OSError("disk full")


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_interrupted_write_leaves_the_old_weights(
    error: type[BaseException], saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    expected = run(trained())
    other = trained()
    with torch.no_grad():
        other.aim.temporal_embedding.add_(1)

    def fail(*args: Any, **kwargs: Any) -> None:
        try:
            fail_midway(*args, **kwargs)
        except OSError as cause:
            raise error("disk full") from cause

    monkeypatch.setattr(checkpoint_files, "save_file", fail)
    with pytest.raises(error, match="disk full"):
        aim.save_adapters(other, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == files
    model = base()
    aim.load_adapters(model, saved)
    assert torch.equal(run(model), expected)


def test_interrupted_first_write_leaves_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_files, "save_file", fail_midway)
    with pytest.raises(OSError, match="disk full"):
        aim.save_adapters(trained(), tmp_path)
    assert names(tmp_path) == sorted([CARD_NAME, CONFIG_NAME])
    assert_refused(base(), tmp_path, f"holds no {WEIGHTS_NAME}")


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_failure_to_replace_leaves_the_old_file(name: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if target.name == name:
            raise PermissionError("in use")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(PermissionError):
        aim.save_adapters(trained(), saved, frame_stride=8)
    assert (saved / name).read_bytes() == files[name]
    assert names(saved) == sorted(files)


def test_each_file_reaches_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    steps: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY  # Windows refuses to sync those
        steps.append(("sync", ""))
        fsync(descriptor)

    def replaced(self: Path, target: Path) -> Path:
        steps.append(("replace", target.name))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    aim.save_adapters(trained(), tmp_path)
    # the weights, which alone are enough to load, come last
    order = [CARD_NAME, CONFIG_NAME, WEIGHTS_NAME]
    assert steps == [step for name in order for step in (("sync", ""), ("replace", name))]


# Round trips


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"bottleneck": 0.1, "scale": 1.5, "num_classes": 7, "temporal_input_adapter": True},
        {"layers": [-1, 0], "components": ("joint", "temporal"), "train_norm": False},
        {"layers": "top_half", "tubelet_size": 2, "num_classes": 0},
        {"components": (), "num_classes": 9, "input_layout": "BTCHW", "attention": "eager"},
    ],
    ids=["defaults", "new_head", "some_blocks", "tubelets", "head_only"],
)
@pytest.mark.parametrize("start", ["unwrapped", "wrapped"])
def test_outputs_are_the_same_to_the_bit(arguments: dict[str, Any], start: str, tmp_path: Path) -> None:
    model = trained(**arguments)
    aim.save_adapters(model, tmp_path)
    other = base() if start == "unwrapped" else wrapped(**arguments)
    assert aim.load_adapters(other, str(tmp_path)) == aim.LoadReport((), (), ())
    assert other.aim.config == model.aim.config
    assert torch.equal(run(other), run(model))
    assert not torch.equal(run(other), run(wrapped(**arguments)))


def test_weights_alone_load(saved: Path) -> None:
    (saved / CONFIG_NAME).unlink()
    (saved / CARD_NAME).unlink()
    model = base()
    aim.load_adapters(model, saved)
    assert torch.equal(run(model), run(trained()))


def test_loading_leaves_the_base_alone(saved: Path) -> None:
    model = base()
    aim.load_adapters(model, saved)
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in base().state_dict().items())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name in state if ".aim." in f".{name}"}


def test_half_precision_round_trip(tmp_path: Path) -> None:
    model = wake(aim.wrap_image_model(base().to(torch.bfloat16), FRAMES))
    aim.save_adapters(model, tmp_path)
    state = load_file(tmp_path / WEIGHTS_NAME)
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    same = base().to(torch.bfloat16)
    aim.load_adapters(same, tmp_path)
    assert torch.equal(run(same, dtype=torch.bfloat16), run(model, dtype=torch.bfloat16))
    wide = base()
    aim.load_adapters(wide, tmp_path)
    ours = aim.adapter_state_dict(wide)
    assert all(tensor.dtype == torch.float32 for tensor in ours.values())
    assert all(torch.equal(ours[key], tensor.float()) for key, tensor in state.items())


def test_settings_of_training_alone_may_differ(saved: Path) -> None:
    model = wrapped(drop_path=0.5, head_dropout=0.5, attention="eager", input_layout="BTCHW")
    assert aim.load_adapters(model, saved) == aim.LoadReport((), (), ())
    assert (model.aim.config.drop_path, model.aim.config.attention) == (0.5, "eager")


def test_same_blocks_by_other_names_are_the_same(saved: Path) -> None:
    model = wrapped(layers=[2, 0, -2])
    aim.load_adapters(model, saved)
    assert torch.equal(run(model), run(trained()))


def test_same_weights_under_another_librarys_name_load(tmp_path: Path) -> None:
    aim.save_adapters(trained("vit_x.in1k"), tmp_path)
    rewrite(tmp_path, config=lambda c: c.update(base_model_library="open_clip", base_model_name_or_path="ViT-X"))
    assert not any(aim.load_adapters(base("vit_x.in1k"), tmp_path))


def test_state_is_detached_and_shares_memory() -> None:
    model = trained()
    state = aim.adapter_state_dict(model)
    assert not any(tensor.requires_grad for tensor in state.values())
    state["temporal_embedding"].fill_(3)
    assert (model.aim.temporal_embedding == 3).all()


@pytest.mark.parametrize(
    "call",
    [
        aim.adapter_state_dict,
        lambda model: aim.load_adapter_state_dict(model, {}),
        lambda model: aim.save_adapters(model, "never"),
    ],
)
def test_what_is_not_one_wrapped_model_is_refused(
    call: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StateError, match=r"VisionTransformer is not wrapped; call wrap_image_model"):
        call(base())
    with pytest.raises(StateError, match=r"several wrapped models found, at \['0', '1'\]"):
        call(nn.Sequential(wrapped(), wrapped()))
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got dict"):
        call({})
    assert names(tmp_path) == []


def test_loading_into_several_wrapped_models_is_refused(saved: Path) -> None:
    assert_refused(nn.Sequential(wrapped(), wrapped()), saved, "several wrapped models", error=StateError)


# Strict: another base


@pytest.mark.parametrize("start", ["unwrapped", "wrapped"])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"embed_dim": 48},
        {"depth": 4},
        {"patch_size": 4},
        {"num_heads": 4},
        {"mlp_ratio": 2.0},
        {"in_chans": 1},
        {"reg_tokens": 1},
    ],
    ids=str,
)
def test_another_base_is_refused(changes: dict[str, Any], strict: bool, start: str, saved: Path) -> None:
    model = base("vit_y.in1k", **changes)
    if start == "wrapped":
        aim.wrap_image_model(model, FRAMES)
    match = r"trained on another base: an unnamed model with fingerprint \w{16}, this model is vit_y.in1k with \w{16}"
    assert_refused(model, saved, match, strict=strict)


@pytest.mark.parametrize("start", [base, wrapped])
def test_another_model_of_the_same_library_and_shape_is_refused(
    start: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    aim.save_adapters(trained("vit_x.in1k"), tmp_path)
    message = "the adapters were trained on vit_x.in1k, this model is vit_x.in21k"
    assert_refused(start("vit_x.in21k"), tmp_path, f"{message}; nothing was loaded. Pass strict=False")
    other = start("vit_x.in21k")
    with pytest.warns(UserWarning, match=message) as caught:
        assert not any(aim.load_adapters(other, tmp_path, strict=False))
    assert [warning.filename for warning in caught] == [__file__]


def test_classification_layer_of_another_size_is_refused(saved: Path) -> None:
    assert_refused(base(num_classes=6), saved, r"2 of another shape: head.weight \(\[5, 32\] for \[6, 32\]\)")


# Strict: other settings


MEANINGS: list[tuple[dict[str, Any], str]] = [
    ({"num_frames": 8}, r"num_frames=4 \(this model: 8\)"),
    ({"scale": 1.0}, r"scale=0.5 \(this model: 1.0\)"),
    ({"components": ("temporal",)}, r"components=\('temporal', 'spatial', 'joint'\) \(this model: \('temporal',\)\)"),
    ({"layers": "top_half"}, r"layers='all' \(this model: 'top_half'\)"),
    ({"layers": [0, 2]}, r"layers='all' \(this model: \(0, 2\)\)"),
    ({"tubelet_size": 2, "num_frames": 8}, r"num_frames=4 \(this model: 8\), tubelet_size=1 \(this model: 2\)"),
    ({"temporal_input_adapter": True}, r"temporal_input_adapter=False \(this model: True\)"),
]


@pytest.mark.parametrize(("arguments", "message"), MEANINGS)
def test_other_settings_are_refused(arguments: dict[str, Any], message: str, saved: Path) -> None:
    match = f"the adapters were saved with {message}; nothing was loaded. Pass strict=False"
    assert_refused(wrapped(**arguments), saved, match)


@pytest.mark.parametrize(("arguments", "message"), MEANINGS)
def test_other_settings_are_a_warning_when_not_strict(arguments: dict[str, Any], message: str, saved: Path) -> None:
    model = wrapped(**arguments)
    with pytest.warns(UserWarning, match=f"the adapters were saved with {message}$") as caught:
        aim.load_adapters(model, saved, strict=False)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bottleneck": 0.5}, r"of another shape: .*down_proj.weight \(\[8, 32\] for \[16, 32\]\).* and 22 more"),
        ({"num_classes": 7}, r"2 of another shape: head.weight \(\[5, 32\] for \[7, 32\]\)"),
        ({"num_classes": 0}, r"2 unexpected: head.bias, head.weight"),
        ({"train_norm": False}, r"2 unexpected: norm.bias, norm.weight"),
    ],
)
def test_other_shapes_are_refused(arguments: dict[str, Any], message: str, saved: Path) -> None:
    assert_refused(
        wrapped(**arguments), saved, rf"does not fit the model, nothing was loaded:.*{message}.*strict=False"
    )


# Strict: missing, extra, misshapen


DAMAGE: dict[str, tuple[Edit, str]] = {
    "missing": (
        lambda s: [s.pop("blocks.1.spatial.up_proj.bias"), s.pop("temporal_embedding")],
        "nothing was loaded: 2 missing: .*blocks.1.spatial.up_proj.bias.*. Wrap the model with",
    ),
    "extra": (lambda s: s.update({"blocks.3.joint.up_proj.bias": torch.zeros(32)}), "1 unexpected: blocks.3.joint"),
    "prefixed": (
        lambda s: [s.update({f"module.{key}": s.pop(key)}) for key in list(s)],
        "41 missing: .* and 36 more; 41 unexpected: module.* and 36 more. Wrap",
    ),
    "misshapen": (
        lambda s: s.update({"norm.weight": torch.zeros(1, 32)}),
        r"1 of another shape: norm.weight \(\[1, 32\] for \[32\]\)",
    ),
    "scalar": (lambda s: s.update({"norm.weight": torch.zeros(())}), r"norm.weight \(\[\] for \[32\]\)"),
    "integer": (
        lambda s: s.update({"head.bias": torch.zeros(5, dtype=torch.int64)}),
        "'head.bias' in .* must be a floating-point tensor, got the dtype 'I64'",
    ),
    "boolean": (
        lambda s: s.update({"extra": torch.zeros(5, dtype=torch.bool)}),
        "'extra' in .* must be a floating-point tensor, got the dtype 'BOOL'",
    ),
    "empty": (lambda s: s.clear(), "41 missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_tensors_that_do_not_fit_are_refused(damage: str, fresh: VisionTransformer, saved: Path) -> None:
    edit, message = DAMAGE[damage]
    rewrite(saved, tensors=edit)
    assert_refused(fresh, saved, message)


def test_refused_state_dict_changes_nothing() -> None:
    model = wrapped()
    state = aim.adapter_state_dict(trained())
    for wrong in (
        {**state, "extra": torch.zeros(1)},
        {**state, "norm.weight": torch.zeros(3)},
        {**state, "norm.bias": torch.zeros(32, dtype=torch.int32)},
        {**state, "norm.bias": [0.0] * 32},
        {key: tensor for key, tensor in state.items() if key != "norm.bias"},
    ):
        before = snapshot(model)
        with pytest.raises(CheckpointError, match=r"extra|norm\."):
            aim.load_adapter_state_dict(model, wrong)  # type: ignore[arg-type]
        assert_same(before, snapshot(model))


@pytest.mark.parametrize("start", ["unwrapped", "wrapped"])
def test_not_strict_loads_what_fits_and_reports_the_rest(start: str, saved: Path) -> None:
    rewrite(
        saved, tensors=lambda s: [s.pop("norm.bias"), s.update(extra=torch.zeros(1), **{"head.bias": torch.ones(6)})]
    )
    model = base() if start == "unwrapped" else wrapped()
    report = aim.load_adapters(model, saved, strict=False)
    assert report == aim.LoadReport(missing=("norm.bias",), unexpected=("extra",), mismatched=("head.bias",))
    before, after, full = (aim.adapter_state_dict(m) for m in (wrapped(), model, trained()))
    for key, tensor in after.items():
        expected = before if key in ("norm.bias", "head.bias") else full
        assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize("start", ["wrapped", "base"])
def test_when_nothing_fits_that_is_said(start: str, saved: Path) -> None:
    rewrite(saved, tensors=lambda s: [s.update({f"module.{key}": s.pop(key)}) for key in list(s)])
    model = base() if start == "base" else wrapped()
    with pytest.warns(UserWarning, match="nothing in .* fits this model, and nothing was loaded"):
        report = aim.load_adapters(model, saved, strict=False)
    assert len(report.missing) == len(report.unexpected) == 41


def test_report_is_named_and_empty_when_all_is_well() -> None:
    model = wrapped()
    report = aim.load_adapter_state_dict(model, aim.adapter_state_dict(trained()))
    assert report == ((), (), ())
    assert report._fields == ("missing", "unexpected", "mismatched")
    assert torch.equal(run(model), run(trained()))


def test_tensors_are_cast_and_copied() -> None:
    model, state = wrapped(), {key: t.double() for key, t in aim.adapter_state_dict(trained()).items()}
    parameters = [id(p) for p in aim.trainable_parameters(model)]
    aim.load_adapter_state_dict(model, state)
    for tensor in state.values():
        tensor.zero_()
    assert [id(p) for p in aim.trainable_parameters(model)] == parameters
    assert torch.equal(run(model), run(trained()))


# Damaged and foreign files


def test_truncated_weights_are_refused_at_any_length(saved: Path) -> None:
    content = (saved / WEIGHTS_NAME).read_bytes()
    end_of_header = 8 + int.from_bytes(content[:8], "little")
    lengths = {0, 1, 7, 8, 9, 100, end_of_header - 1, end_of_header, end_of_header + 1, len(content) - 1}
    lengths |= set(range(0, len(content), len(content) // 23))
    models = [base(), wrapped()]
    for length in sorted(lengths):
        (saved / WEIGHTS_NAME).write_bytes(content[:length])
        for model in models:
            assert_refused(model, saved, f"{WEIGHTS_NAME} is damaged or not a safetensors file")


def test_trailing_bytes_are_refused(fresh: VisionTransformer, saved: Path) -> None:
    with (saved / WEIGHTS_NAME).open("ab") as file:
        file.write(b"\0" * 16)
    assert_refused(fresh, saved, "is damaged or not a safetensors file")


@given(data=st.data())
@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bytes_load_or_are_refused_and_nothing_else(data: st.DataObject, saved: Path) -> None:
    good = saved.with_name("good")
    if not good.exists():
        shutil.copytree(saved, good)
    content = bytearray((good / WEIGHTS_NAME).read_bytes())
    end_of_header = 8 + int.from_bytes(content[:8], "little")
    for position in data.draw(st.lists(st.integers(0, end_of_header - 1), min_size=1, max_size=3)):
        content[position] = data.draw(st.integers(0, 255) | st.sampled_from(b'"{}[],:0123456789'))
    (saved / WEIGHTS_NAME).write_bytes(content)
    (saved / CONFIG_NAME).unlink(missing_ok=True)
    model = data.draw(st.sampled_from([base, wrapped]))()
    before = snapshot(model)
    try:
        aim.load_adapters(model, saved)
    except CheckpointError:
        assert_same(before, snapshot(model))


@pytest.mark.parametrize(
    "content",
    [b"not safetensors at all", b"\xff" * 64, json.dumps({"peft_type": "AIM"}).encode(), b"\x80\x02}q\x00."],
    ids=["text", "huge_header", "json", "pickle"],
)
def test_what_is_not_safetensors_is_refused(content: bytes, fresh: VisionTransformer, saved: Path) -> None:
    (saved / WEIGHTS_NAME).write_bytes(content)
    assert_refused(fresh, saved, f"{WEIGHTS_NAME} is damaged or not a safetensors file")


def test_pickle_is_never_read(fresh: VisionTransformer, saved: Path) -> None:
    torch.save(aim.adapter_state_dict(trained()), saved / WEIGHTS_NAME)
    assert_refused(fresh, saved, "not a safetensors file")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"config": "{}"}], ids=str)
def test_weights_without_a_config_in_the_header_are_refused(
    metadata: dict[str, str] | None, fresh: VisionTransformer, saved: Path
) -> None:
    save_file(load_file(saved / WEIGHTS_NAME), saved / WEIGHTS_NAME, metadata=metadata)
    assert_refused(fresh, saved, "no AIM config in its header; it was not made by save_adapters")


FOREIGN: dict[str, tuple[bytes, str]] = {
    "peft": (
        b'{"peft_type": "LORA", "r": 8}',
        "describes an adapter of type 'LORA', expected 'AIM'; load it with peft",
    ),
    "adapters": (
        b'{"config": {"mh_adapter": true}, "model_class": "ViTModel", "name": "x", "version": "adapters.1.0.0"}',
        "an adapter of type None, expected 'AIM'; it is an adapter of the adapters library",
    ),
    "no_type": (b'{"num_frames": 4}', "an adapter of type None, expected 'AIM'"),
    "newer": (
        b'{"peft_type": "AIM", "format_version": 2, "aim_version": "9.9.0"}',
        r"format version 2, this library reads 1; update aim-adapters \(it was written by 9.9.0\)",
    ),
    "no_version": (b'{"peft_type": "AIM"}', "format version None, this library reads 1"),
    "not_json": (b"{peft_type: AIM}", "is not JSON: "),
    "cut": (b'{"peft_type": "AIM", ', "is not JSON: "),
    "nothing": (b"", "is not JSON: "),
    "deep": (b"[" * 200_000, "is not JSON: "),
    "long_integer": (b'{"num_frames": ' + b"1" * 5000 + b"}", "is not JSON: "),
    "list": (b'["AIM"]', "must be a JSON object, got list"),
    "null": (b"null", "must be a JSON object, got NoneType"),
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("where", ["beside", "header"])
def test_foreign_config_is_refused(what: str, where: str, fresh: VisionTransformer, saved: Path) -> None:
    content, message = FOREIGN[what]
    name = CONFIG_NAME if where == "beside" else WEIGHTS_NAME
    if where == "beside":
        (saved / name).write_bytes(content)
    else:
        metadata = {**header(saved), "aim_config": content.decode()}
        save_file(load_file(saved / name), saved / name, metadata=metadata)
    assert_refused(fresh, saved, f"{name}.* {message}")


def test_config_that_is_not_text_is_refused(fresh: VisionTransformer, saved: Path) -> None:
    (saved / CONFIG_NAME).write_bytes(b'{"peft_type": "\xff\xfe"}')
    assert_refused(fresh, saved, f"{CONFIG_NAME} is not JSON: ")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frames": 0}, "num_frames must be an integer >= 1, got 0"),
        ({"num_frames": "4"}, "num_frames must be an integer >= 1, got '4' of type str"),
        ({"bottleneck": -1}, "bottleneck must be a finite number > 0.0 and < 65536.0, got -1"),
        ({"scale": 10**400}, "scale must be a finite number, got 1000"),
        ({"components": "temporal"}, "components: expected some of"),
        ({"components": [["temporal"]]}, "components: expected some of"),
        ({"layers": {"0": 1}}, "layers: expected"),
        ({"layers": [5]}, "layers names block 5, but the model has 3 blocks"),
        ({"layers": [0, -3]}, "layers names a block twice"),
        ({"attention": "flash"}, "attention must be one of"),
        ({"train_norm": None}, "train_norm must be True or False"),
    ],
)
def test_invalid_settings_are_refused(
    fields: dict[str, Any], message: str, fresh: VisionTransformer, saved: Path
) -> None:
    rewrite(saved, config=lambda config: config.update(fields))
    assert_refused(fresh, saved, message)


def test_settings_without_frames_are_refused(fresh: VisionTransformer, saved: Path) -> None:
    rewrite(saved, config=lambda config: config.pop("num_frames"))
    assert_refused(fresh, saved, f"the config in .*{saved.name}.* is invalid: config lacks num_frames")


def test_settings_that_do_not_fit_an_unwrapped_model_are_refused(saved: Path) -> None:
    rewrite(saved, config=lambda config: config.update(bottleneck=1e-6))
    assert_refused(base(), saved, "do not fit this model: bottleneck=1e-06 gives adapters of width")


def test_kernel_that_cannot_run_here_is_replaced_and_said(saved: Path, no_triton: None) -> None:
    rewrite(saved, config=lambda config: config.update(attention="triton"))
    model = base()
    with pytest.warns(UserWarning, match="saved with attention='triton', which cannot run here"):
        aim.load_adapters(model, saved)
    assert model.aim.config.attention == "auto"
    assert torch.equal(run(model), run(trained()))


def test_model_that_cannot_be_adapted_is_refused(saved: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    assert_refused(model, saved, "not an image transformer", error=aim.UnsupportedModelError)


@pytest.mark.parametrize("case", ["empty", "config_only", "adapter_model.bin", "model.safetensors"])
def test_missing_files_are_named(case: str, fresh: VisionTransformer, saved: Path) -> None:
    for path in saved.iterdir():
        if case != "config_only" or path.name != CONFIG_NAME:
            path.unlink()
    hint = {"adapter_model.bin": "; it holds a pickled peft adapter", "model.safetensors": "; it holds a whole model"}
    if case in hint:
        (saved / case).write_bytes(b"")
    match = f"{saved.name} holds no {WEIGHTS_NAME}; expected a directory made by save_adapters{hint.get(case, '')}"
    assert_refused(fresh, saved, match)


def test_config_beside_the_weights_that_differs_is_reported_and_the_header_wins(saved: Path) -> None:
    config = json.loads((saved / CONFIG_NAME).read_text(encoding="utf-8"))
    (saved / CONFIG_NAME).write_text(json.dumps({**config, "scale": 9.0}), encoding="utf-8")
    model = base()
    with pytest.warns(UserWarning, match=f"{CONFIG_NAME} differs from the config inside {WEIGHTS_NAME}") as caught:
        aim.load_adapters(model, saved)
    assert [warning.filename for warning in caught] == [__file__]
    assert model.aim.config.scale == 0.5
    assert torch.equal(run(model), run(trained()))
