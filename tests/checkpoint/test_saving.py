"""What was trained is saved whole, and nothing else; a save that fails leaves what was there."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import aim_adapters as aim
from aim_adapters.checkpoint import format
from aim_adapters.errors import CheckpointError, StateError
from aim_adapters.storage import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME, WeightsFile, writing
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


def fail_midway(path: Path, *arguments: Any) -> None:
    path.write_bytes(b"half of a")
    raise OSError("disk full")


@pytest.mark.parametrize(("error", "seen"), [(OSError, CheckpointError), (KeyboardInterrupt, KeyboardInterrupt)])
def test_interrupted_write_leaves_the_old_checkpoint(
    error: type[BaseException], seen: type[BaseException], saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    expected = run(trained())
    other = trained()
    with torch.no_grad():
        other.aim.temporal_embedding.add_(1)

    def fail(*args: Any) -> None:
        try:
            fail_midway(*args)
        except OSError as cause:
            raise error("disk full") from cause

    monkeypatch.setattr(writing, "write_weights", fail)
    with pytest.raises(seen, match="disk full"):
        aim.save_adapters(other, saved, frame_stride=8)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == files
    model = base()
    aim.load_adapters(model, saved)
    assert torch.equal(run(model), expected)


def test_interrupted_first_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "write_weights", fail_midway)
    with pytest.raises(CheckpointError, match=f"cannot write {tmp_path}, where nothing was changed: disk full"):
        aim.save_adapters(trained(), tmp_path)
    assert not names(tmp_path)
    assert_refused(base(), tmp_path, f"holds no {WEIGHTS_NAME}")


@pytest.mark.parametrize("most", [0, 100, 3000, 20_000])  # the first file and the last, which is the weights
def test_full_disk_leaves_the_old_checkpoint(most: int, saved: Path) -> None:
    resource = pytest.importorskip("resource")
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    model = trained(num_classes=7)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        with pytest.raises(CheckpointError, match=r"nothing was changed: .*File too large"):
            aim.save_adapters(model, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == files


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "file/below", "link", "pipe"])
def test_directory_that_cannot_be_made_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    if name == "link":
        (tmp_path / "link").symlink_to("nowhere")
    if name == "pipe":
        os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match=r"cannot write|expects a directory"):
        aim.save_adapters(trained(), tmp_path / name)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_failure_to_replace_leaves_the_old_file(name: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if name in (self.name, target.name):
            raise PermissionError("in use")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(CheckpointError, match="nothing was changed: in use"):
        aim.save_adapters(trained(), saved, frame_stride=8)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == files


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
    aim.save_adapters(trained(), tmp_path)  # the texts are the same
    sync, new = ("sync", ""), ("replace", WEIGHTS_NAME)
    first = [sync, sync, sync, new, ("replace", CARD_NAME), ("replace", CONFIG_NAME)]
    assert steps == [*first, sync, sync, sync, new]
    aim.save_adapters(trained(), tmp_path, frame_stride=8)
    away = ("replace", "previous.json")
    assert steps[len(first) + 4 :] == [sync, sync, sync, away, new, ("replace", CARD_NAME), ("replace", CONFIG_NAME)]


# The same bytes, whatever lies there


def test_same_adapter_gives_the_same_bytes(tmp_path: Path) -> None:
    model, contents = trained(), set()
    for turn in range(8):
        directory = aim.save_adapters(model, tmp_path / str(turn), labels=list("abcde"))
        contents.add(tuple((directory / name).read_bytes() for name in names(directory)))
    assert len(contents) == 1


READMES = {
    "pipe": lambda path: os.mkfifo(path),
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "directory": lambda path: path.mkdir(),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "endless": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
}


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")
@pytest.mark.parametrize("kind", READMES)
def test_readme_that_is_no_text_is_left_alone_with_a_warning(kind: str, tmp_path: Path) -> None:
    path = tmp_path / CARD_NAME
    READMES[kind](path)
    before = path.lstat()
    with pytest.warns(UserWarning, match=r"README\.md (cannot|is not|is larger).*; it is left as it is") as caught:
        aim.save_adapters(trained(), tmp_path)
    assert caught[0].filename == __file__
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
    assert not any(aim.load_adapters(base(), tmp_path))


def test_checkpoint_replaced_while_it_is_opened_loads_whole(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer, opened = trained(), format.open_weights
    with torch.no_grad():
        newer.aim.temporal_embedding.add_(1)

    def replace_and_open(path: Path) -> AbstractContextManager[WeightsFile]:
        aim.save_adapters(newer, saved, frame_stride=8)  # the config of the older one has been read
        return opened(path)

    monkeypatch.setattr(format, "open_weights", replace_and_open)
    model = base()
    aim.load_adapters(model, saved)  # without a warning that config and weights differ
    assert torch.equal(run(model), run(newer))


def test_config_that_a_save_takes_away_meanwhile_is_not_missed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = format.read_json

    def remove_and_read(path: Path) -> dict[str, Any]:
        path.unlink()
        return read(path)

    monkeypatch.setattr(format, "read_json", remove_and_read)
    assert not any(aim.load_adapters(base(), saved))
