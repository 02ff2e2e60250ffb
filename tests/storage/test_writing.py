"""What is written: the bytes that safetensors writes, each time the same, and one whole checkpoint at any moment."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from torch import Tensor

from aim_adapters.errors import CheckpointError
from aim_adapters.storage import files, writing
from aim_adapters.storage.files import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME, open_weights
from aim_adapters.storage.writing import replaced_when_whole, write_checkpoint, write_weights
from tests.storage.cases import IN_ONE_DIRECTORY, NAME, POSIX, TEXT, as_bytes, read, tensors


def checkpoint(directory: Path, value: float = 1, *, card: str | None = None) -> None:
    config = f'{{"value": {value}}}'
    write_checkpoint(directory, {"a": torch.full((2,), float(value))}, {"aim_config": config}, config=config, card=card)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# Weights


@IN_ONE_DIRECTORY
@given(state=st.dictionaries(TEXT, tensors(), max_size=6), key=TEXT, text=TEXT)
def test_bytes_are_those_that_safetensors_writes(state: dict[str, Tensor], key: str, text: str, tmp_path: Path) -> None:
    write_weights(tmp_path / NAME, state, {key: text})
    assert (tmp_path / NAME).read_bytes() == save(state, metadata={key: text})


@IN_ONE_DIRECTORY
@given(state=st.dictionaries(TEXT, tensors(), max_size=6), metadata=st.dictionaries(TEXT, TEXT, max_size=5))
def test_order_of_keys_does_not_matter(state: dict[str, Tensor], metadata: dict[str, str], tmp_path: Path) -> None:
    write_weights(tmp_path / NAME, state, metadata)
    write_weights(tmp_path / "other", dict(reversed(state.items())), dict(reversed(metadata.items())))
    assert (tmp_path / NAME).read_bytes() == (tmp_path / "other").read_bytes()
    theirs = load_file(tmp_path / NAME)
    assert {key: as_bytes(tensor) for key, tensor in theirs.items()} == {k: as_bytes(t) for k, t in state.items()}
    with open_weights(tmp_path / NAME) as file:
        assert file.metadata == metadata


def test_tensors_of_any_strides_and_gradients_are_written(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3).requires_grad_()
    write_weights(tmp_path / NAME, {"a": weight.T, "b": weight[:, 1], "c": weight[0, 0]}, {})
    state = read(tmp_path / NAME)
    assert torch.equal(state["a"], weight.T) and torch.equal(state["b"], weight[:, 1]) and state["c"].shape == ()


def test_other_dtypes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'b' must be a floating-point tensor to be saved, got torch.int64"):
        write_weights(tmp_path / NAME, {"a": torch.ones(2), "b": torch.arange(2)}, {})
    assert not names(tmp_path)


# Directories


def test_leftovers_of_killed_saves_are_removed_when_they_are_old(tmp_path: Path) -> None:
    old = [f".{name}.{end}.tmp" for name in (WEIGHTS_NAME, CONFIG_NAME) for end in ("123", "0a1b2c3d")]
    others = [f".{WEIGHTS_NAME}.new.tmp", ".y.safetensors.old.tmp", f"{WEIGHTS_NAME}.old.tmp", f".{WEIGHTS_NAME}.tmp"]
    for name in (*old, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".tmp123").write_bytes(b"half")
        if "new" not in name:
            os.utime(tmp_path / name, (0, time.time() - 2 * 3600))
    checkpoint(tmp_path)
    assert names(tmp_path) == sorted([WEIGHTS_NAME, CONFIG_NAME, *others])


def test_saves_at_the_same_time_do_not_write_into_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_twice(path: Path, *arguments: Any) -> None:
        monkeypatch.setattr(writing, "write_weights", write_weights)
        checkpoint(tmp_path, 0)
        write_weights(path, *arguments)

    monkeypatch.setattr(writing, "write_weights", write_twice)
    checkpoint(tmp_path, 1)
    assert read(tmp_path / WEIGHTS_NAME)["a"].tolist() == [1, 1]
    assert files.read_json(tmp_path / CONFIG_NAME) == {"value": 1}
    assert names(tmp_path) == [CONFIG_NAME, WEIGHTS_NAME]


@POSIX
def test_saves_swap_their_files_in_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_SECONDS_TO_WAIT", 0.05)
    checkpoint(tmp_path, 0)
    with writing._alone(tmp_path), pytest.raises(CheckpointError, match="another process has been saving to"):
        checkpoint(tmp_path, 1)
    assert read(tmp_path / WEIGHTS_NAME)["a"].tolist() == [0, 0]
    checkpoint(tmp_path, 1)
    assert read(tmp_path / WEIGHTS_NAME)["a"].tolist() == [1, 1]


@POSIX
def test_written_files_may_be_read_as_any_others(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    checkpoint(tmp_path, card="text")
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "plain").stat().st_mode}


SPECIAL = {
    "pipe": lambda path: os.mkfifo(path),
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "link": lambda path: path.symlink_to("blob"),
    "link to a pipe": lambda path: (os.mkfifo(path.parent / "pipe"), path.symlink_to("pipe")),
}


@POSIX
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", [WEIGHTS_NAME, CONFIG_NAME])
def test_whatever_has_the_name_is_replaced_and_what_it_leads_to_is_left(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"another's")
    SPECIAL[kind](tmp_path / name)
    checkpoint(tmp_path)
    assert not (tmp_path / name).is_symlink() and (tmp_path / name).is_file()
    assert (tmp_path / "blob").read_bytes() == b"another's"
    assert read(tmp_path / WEIGHTS_NAME)["a"].tolist() == [1, 1]


@pytest.mark.parametrize("name", [WEIGHTS_NAME, CONFIG_NAME, CARD_NAME])
def test_directory_of_that_name_stops_the_save(name: str, tmp_path: Path) -> None:
    checkpoint(tmp_path, 0, card="old")
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(CheckpointError, match=f"{name} is a directory; remove it"):
        checkpoint(tmp_path, 1, card="new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_file_is_replaced_when_the_new_one_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "report.html"
    with replaced_when_whole(file) as staged:
        staged.write_text("old")
    with pytest.raises(ZeroDivisionError), replaced_when_whole(file) as staged:
        staged.write_text("ha")
        raise ZeroDivisionError
    assert file.read_text() == "old"
    assert [path.name for path in file.parent.iterdir()] == ["report.html"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder", tmp_path / "file" / "below"):
        with pytest.raises(OSError) as caught, replaced_when_whole(path) as staged:
            staged.write_text("new")
        assert caught.value.filename in (str(path), str(path.parent))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
