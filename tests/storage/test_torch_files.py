"""What torch.save writes is read as torch.load reads it, and a file that claims more than it holds is refused."""

import io
import os
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aim_adapters.errors import CheckpointError
from aim_adapters.storage import StoredTensor, read_torch_file
from tests.memory import at_most
from tests.storage.pickle_cases import archive, legacy, saved, state_dict, tensor

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64,
]  # fmt: skip


def read(folder: Path, content: bytes) -> Any:
    (folder / "x.pth").write_bytes(content)
    return read_torch_file(folder / "x.pth")


def loaded(content: Any) -> Any:
    """Return the content with its tensors read."""
    if isinstance(content, StoredTensor):
        return content.load()
    if isinstance(content, dict):
        return {key: loaded(value) for key, value in content.items()}
    return type(content)(map(loaded, content)) if isinstance(content, (list, tuple)) else content


def assert_same(read: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        assert read.dtype == expected.dtype and torch.equal(read, expected)
        assert read.stride() == expected.stride() or not read.numel()
    elif isinstance(expected, dict):
        assert list(read) == list(expected)
        for key in expected:
            assert_same(read[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert type(read) is type(expected) and len(read) == len(expected)
        for ours, theirs in zip(read, expected, strict=True):
            assert_same(ours, theirs)
    else:
        assert read == expected


@pytest.mark.parametrize("zipped", [True, False])
def test_it_reads_what_torch_reads(zipped: bool, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    base = torch.randn(4, 6)
    content = {
        "meta": {"epoch": 3, "classes": ("a", "ü"), "lr": 1e-3, "none": None, "big": 2**60, "yes": True, 7: b"\xff"},
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "views": [base, base.T, base[1:3, ::2], base[:, :0], base[0, 0], nn.Parameter(base)],
        "dtypes": OrderedDict((str(dtype), torch.ones(3).to(dtype)) for dtype in DTYPES),
    }
    data = saved(content, _use_new_zipfile_serialization=zipped)
    expected = torch.load(io.BytesIO(data), weights_only=True)
    assert_same(loaded(read(tmp_path, data)), expected)


SAMPLES = [
    saved({"a": torch.ones(2, 3), "b": {"c": (1, 2.5, "x")}}, _use_new_zipfile_serialization=zipped)
    for zipped in (True, False)
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sample=st.sampled_from(SAMPLES),
    edits=st.lists(
        st.tuples(
            st.floats(0, 1, exclude_max=True), st.integers(0, 8), st.binary(max_size=8) | st.sampled_from(SAMPLES)
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_changed_bytes_give_an_error_or_a_state_dict(
    sample: bytes, edits: list[tuple[float, int, bytes]], tmp_path: Path
) -> None:
    for place, count, bytes_instead in edits:
        at = int(place * len(sample))
        sample = sample[:at] + bytes_instead + sample[at + count :]
    with at_most(64):
        try:
            loaded(read(tmp_path, sample))
        except CheckpointError:
            pass


@pytest.mark.parametrize("write", [archive, legacy])
def test_values_behind_anything_are_aligned(write: Any, tmp_path: Path) -> None:
    tensors = loaded(read(tmp_path, write(state_dict(a=tensor(1, 1, old=write is legacy)), {"0": b"\0\0\x80?"})))
    assert tensors["a"].tolist() == [1] and tensors["a"].data_ptr() % 4 == 0


@pytest.mark.skipif(not hasattr(os, "SEEK_DATA"), reason="files have no holes here")
@pytest.mark.parametrize("write", [archive, legacy])
def test_holes_take_no_memory(write: Any, tmp_path: Path) -> None:
    content = write(state_dict(a=tensor(1 << 30, 1 << 30, old=write is legacy)), {"0": b"\x07" * 8})
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    os.truncate(path, len(content) + (4 << 30))
    with at_most(64), pytest.raises(CheckpointError, match="the disk holds only"):
        read_torch_file(path)


def test_other_formats_are_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("storages"))
    with pytest.raises(CheckpointError, match="tar format of before 2017"):
        read(tmp_path, buffer.getvalue())
    with pytest.raises(CheckpointError, match="TorchScript"):
        read(tmp_path, archive(state_dict(), **{"constants.pkl": b""}))
    with pytest.raises(CheckpointError, match="not little-endian"):
        read(tmp_path, archive(state_dict(), byteorder=b"big"))
    with pytest.raises(CheckpointError, match="the most that is read"):
        read(tmp_path, archive(b"N" * (5 << 20)))


def test_tensors_share_the_file_until_they_are_changed(tmp_path: Path) -> None:
    shared = torch.zeros(4)
    tensors = loaded(read(tmp_path, saved({"a": shared, "b": shared})))
    tensors["a"][0] = 1
    assert tensors["b"][0] == 1 and not loaded(read_torch_file(tmp_path / "x.pth"))["a"].any()
