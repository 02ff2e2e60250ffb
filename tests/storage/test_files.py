"""Whatever the bytes: what is read is what safetensors reads, and everything else is refused at once."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

from aim_adapters.errors import CheckpointError
from aim_adapters.storage import files
from aim_adapters.storage.files import open_weights, replace_text, write_weights
from benchmarks.checks.fuzz_checkpoint import check_reading, mutate, small_file
from tests.alignment import is_aligned
from tests.storage.cases import IN_ONE_DIRECTORY, NAME, POSIX, ROW, TEXT, as_bytes, count, pack, read

# What is valid


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Return a tensor of any bits: NaN, infinities and subnormal numbers too."""
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    size = torch.Size(shape).numel() * dtype.itemsize
    content = bytearray(draw(st.binary(min_size=size, max_size=size)))
    return torch.frombuffer(content, dtype=dtype).view(shape) if content else torch.empty(shape, dtype=dtype)


@IN_ONE_DIRECTORY
@given(state=st.dictionaries(TEXT, tensors(), max_size=6), metadata=st.dictionaries(TEXT, TEXT, min_size=1, max_size=3))
def test_what_safetensors_writes_is_read_to_the_bit(
    state: dict[str, Tensor], metadata: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / NAME).write_bytes(save(state, metadata=metadata))
    with open_weights(tmp_path / NAME) as file:
        assert file.metadata == metadata
        assert file.shapes == {key: tuple(tensor.shape) for key, tensor in state.items()}
        for key, tensor in state.items():
            ours = file.read(key)
            assert (ours.dtype, ours.shape) == (tensor.dtype, tensor.shape)
            assert as_bytes(ours) == as_bytes(tensor)


@settings(IN_ONE_DIRECTORY, max_examples=400)
@given(chance=st.randoms(use_true_random=False), times=st.integers(1, 3))
def test_what_is_read_safetensors_reads_too(chance: random.Random, times: int, tmp_path: Path) -> None:
    content = small_file()
    for _ in range(times):
        content = mutate(content, chance)
    check_reading(tmp_path / NAME, content)


def test_tensors_own_their_memory_and_lie_on_the_cpu(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(small_file())
    with torch.device("meta"):
        state = read(tmp_path / NAME)
    assert {tensor.device.type for tensor in state.values()} == {"cpu"}
    (tmp_path / NAME).write_bytes(b"")
    assert state["d"].tolist() == [0, 1, 2, 3, 4]
    state["d"].zero_()


@pytest.mark.parametrize("before", range(1, 16))
def test_tensors_are_aligned_wherever_they_begin_in_the_file(before: int, tmp_path: Path) -> None:
    """Some CPUs compute other last digits from tensors that begin elsewhere than PyTorch allocates them."""
    save_file({"a": torch.zeros(before), "b": torch.arange(5.0)}, tmp_path / NAME)
    state = read(tmp_path / NAME)
    assert all(map(is_aligned, state.values()))
    assert state["b"].tolist() == [0, 1, 2, 3, 4]


def test_many_tensors_open_fast(tmp_path: Path) -> None:
    state = {f"blocks.{i}.temporal.down_proj.weight": torch.full((2,), float(i)) for i in range(20_000)}
    save_file(state, tmp_path / NAME)
    start = time.process_time()
    with open_weights(tmp_path / NAME) as file:
        assert len(file.shapes) == 20_000
        assert file.read("blocks.777.temporal.down_proj.weight").tolist() == [777, 777]
    assert time.process_time() - start < 2


# Changes while it is read


def test_file_replaced_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(small_file())
    with open_weights(tmp_path / NAME) as file:
        (tmp_path / "other").write_bytes(pack({"a": ROW}))
        if os.name == "posix":
            (tmp_path / "other").replace(tmp_path / NAME)
        assert as_bytes(file.read("a")) == as_bytes(torch.linspace(-1, 1, 6))


@pytest.mark.parametrize("left", [0, 8, 9, -1])
def test_file_cut_while_it_is_read_is_refused(left: int, tmp_path: Path) -> None:
    state = {"a": torch.ones(100_000), "b": torch.ones(100_000)}
    content = save(state)
    (tmp_path / NAME).write_bytes(content)
    with open_weights(tmp_path / NAME) as file:
        os.truncate(tmp_path / NAME, left % len(content))
        with pytest.raises(CheckpointError, match="was changed while it was read"):
            file.read("b")


def test_file_changed_in_place_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(save({"a": torch.ones(4), "b": torch.ones(4)}))
    os.utime(path, ns=(0, 10**18))
    with open_weights(path) as file:
        assert file.read("a").tolist() == [1, 1, 1, 1]
        path.write_bytes(save({"a": torch.zeros(4), "b": torch.zeros(4)}))
        with pytest.raises(CheckpointError, match=r"x\.safetensors was changed while it was read"):
            file.read("b")


# Writing


def test_leftovers_of_killed_saves_are_removed_when_they_are_old(tmp_path: Path) -> None:
    names = [".x.safetensors.123.tmp", ".x.safetensors.0a1b2c3d.tmp"]
    others = [".x.safetensors.new.tmp", ".y.safetensors.old.tmp", "x.safetensors.old.tmp", ".x.safetensors.tmp"]
    for name in (*names, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".tmp123").write_bytes(b"half")
        if "new" not in name:
            os.utime(tmp_path / name, (0, time.time() - 2 * 3600))
    write_weights(tmp_path / NAME, {"a": torch.ones(2)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([NAME, *others])


def test_saves_at_the_same_time_do_not_write_into_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_twice(state: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        monkeypatch.setattr(files, "save_file", save_file)
        write_weights(tmp_path / NAME, {"a": torch.zeros(2)}, {})
        assert path.stat().st_size == 0
        save_file(state, path, metadata)

    monkeypatch.setattr(files, "save_file", save_twice)
    write_weights(tmp_path / NAME, {"a": torch.ones(2)}, {})
    assert read(tmp_path / NAME)["a"].tolist() == [1, 1]
    assert count(tmp_path) == 1


@POSIX
def test_written_files_may_be_read_as_any_others(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_weights(tmp_path / NAME, {"a": torch.ones(2)}, {"x": "y"})
    replace_text(tmp_path / "c.json", "{}")
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "plain").stat().st_mode}


@POSIX
def test_writing_replaces_a_link_and_leaves_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"another's")
    (tmp_path / NAME).symlink_to("blob")
    write_weights(tmp_path / NAME, {"a": torch.ones(2)}, {})
    assert (tmp_path / "blob").read_bytes() == b"another's"
    assert not (tmp_path / NAME).is_symlink()
    assert read(tmp_path / NAME)["a"].tolist() == [1, 1]
