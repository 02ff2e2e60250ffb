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
from aim_adapters.storage.files import open_weights
from benchmarks.checks.fuzz_checkpoint import check_reading, mutate, small_file
from tests.alignment import is_aligned
from tests.storage.cases import IN_ONE_DIRECTORY, NAME, POSIX, ROW, TEXT, as_bytes, pack, read, tensors

# What is valid


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


def written_within_a_tick(path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write into a file in place, so soon after it was opened that no time stamp shows it."""
    before = path.stat()
    path.write_bytes(content)
    monkeypatch.setattr(os, "fstat", lambda descriptor: before)


@pytest.mark.parametrize("size", [4, 100_000])  # within a buffer, and beyond it
@pytest.mark.parametrize("young", [True, False])
def test_file_changed_within_a_tick_of_the_clock_is_refused(
    young: bool, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / NAME
    path.write_bytes(save({"a": torch.ones(size), "b": torch.ones(size)}))
    if not young:  # a file that is older changes its time stamp whenever it is written, so it is read once
        os.utime(path, ns=(0, 10**18))
    with open_weights(path) as file:
        assert file.read("a").eq(1).all()
        written_within_a_tick(path, save({"a": torch.zeros(size), "b": torch.ones(size)}), monkeypatch)
        file.read("b")
        if young:
            with pytest.raises(CheckpointError, match=r"changed while it was read; load it again once it is complete"):
                file.require_unchanged()
        else:
            file.require_unchanged()


def test_header_changed_within_a_tick_of_the_clock_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / NAME
    path.write_bytes(save({"a": torch.ones(4)}, metadata={"config": "1"}))
    with open_weights(path) as file:
        written_within_a_tick(path, save({"a": torch.ones(4)}, metadata={"config": "2"}), monkeypatch)
        file.read("a")
        with pytest.raises(CheckpointError, match="changed while it was read"):
            file.require_unchanged()


@POSIX
def test_time_stamp_that_is_set_back_hides_no_change(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(save({"a": torch.ones(4)}))
    os.utime(path, ns=(0, 10**18))
    with open_weights(path) as file:
        path.write_bytes(save({"a": torch.zeros(4)}))
        os.utime(path, ns=(0, 10**18))
        with pytest.raises(CheckpointError, match="changed while it was read"):
            file.read("a")


def test_file_that_was_just_written_costs_a_moment(tmp_path: Path) -> None:
    state = {str(i): torch.randn(1000, 1000) for i in range(4)}  # 16 MB
    (tmp_path / NAME).write_bytes(save(state))
    with open_weights(tmp_path / NAME) as file:
        for key, tensor in state.items():
            assert torch.equal(file.read(key), tensor)
        start = time.perf_counter()
        file.require_unchanged()
    assert time.perf_counter() - start < 0.5


def test_all_tensors_in_parts_and_in_place(tmp_path: Path) -> None:
    state = {str(i): torch.randn(i, 300) for i in range(700, 0, -70)} | {"empty": torch.ones(0, 3)}
    (tmp_path / NAME).write_bytes(save(state))
    targets = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    with open_weights(tmp_path / NAME) as file:
        sizes, total = [], 0.0
        for part in file.parts(torch.float32):
            sizes.append(part.nbytes)
            total += float(part.double().sum())
        file.read_into(targets)
    assert max(sizes) <= 2**20 and sum(sizes) == sum(tensor.nbytes for tensor in state.values())
    assert total == pytest.approx(sum(float(tensor.double().sum()) for tensor in state.values()))
    assert all(torch.equal(targets[key], tensor) for key, tensor in state.items())
