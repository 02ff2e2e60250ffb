"""What was trained is saved whole, and nothing else; a save that fails leaves what was there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import aim_adapters as aim
from aim_adapters.errors import CheckpointError, StateError
from aim_adapters.storage import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME
from aim_adapters.storage import files as storage_files
from tests.checkpoint.cases import assert_refused, header, names, rewrite
from tests.tiny import base, run, trained, wrapped

ADAPTER = ("down_proj.weight", "down_proj.bias", "up_proj.weight", "up_proj.bias")


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


def test_labels_that_do_not_fit_the_classes_are_refused(saved: Path) -> None:
    rewrite(saved, config=lambda config: config["clip"].update(labels=["a", "b"]))
    for model in (base(), wrapped()):
        assert_refused(model, saved, "does not fit its tensors: got 2 labels for a model with 5 classes")


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

    monkeypatch.setattr(storage_files, "save_file", fail)
    with pytest.raises(error, match="disk full"):
        aim.save_adapters(other, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == files
    model = base()
    aim.load_adapters(model, saved)
    assert torch.equal(run(model), expected)


def test_interrupted_first_write_leaves_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_files, "save_file", fail_midway)
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
