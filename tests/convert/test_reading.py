"""A file is read without running code in it, and nothing in it is believed."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aim_adapters.convert.reading import read_tensors, require_finite
from aim_adapters.errors import CheckpointError


def small(**more: Any) -> dict[str, Any]:
    state = OrderedDict({"module.backbone.a.weight": torch.arange(6.0).view(2, 3), "cls_head.b": torch.ones(2)})
    return {"meta": {"epoch": 3, "CLASSES": ("a", "b")}, "state_dict": state, **more}


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def read(path: Path, content: bytes) -> dict[str, Tensor]:
    path.write_bytes(content)
    return read_tensors(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_both_formats_of_files_are_read_without_prefixes(tmp_path: Path, zipped: bool) -> None:
    tensors = read(tmp_path / "x.pth", saved(small(), _use_new_zipfile_serialization=zipped))
    assert list(tensors) == ["a.weight", "cls_head.b"]
    assert torch.equal(tensors["a.weight"], torch.arange(6.0).view(2, 3))


def test_a_parameter_is_a_tensor_without_a_graph() -> None:
    tensors = read_tensors({"x": nn.Parameter(torch.ones(2))})
    assert type(tensors["x"]) is Tensor
    assert not tensors["x"].requires_grad


class Payload:
    ran: bool = False

    def __reduce__(self) -> Any:
        return (setattr, (Payload, "ran", True))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_never_runs(tmp_path: Path, zipped: bool) -> None:
    content = saved(small(hook=Payload()), _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"\(.*setattr.*save its tensors alone"):
        read(tmp_path / "x.pth", content)
    assert not Payload.ran
    with pytest.raises(CheckpointError):
        read(tmp_path / "y.pth", pickle.dumps(Payload(), protocol=2))
    assert not Payload.ran


def test_what_is_not_allowed_is_named_and_can_be_allowed(tmp_path: Path) -> None:
    score = np.float64(0.8)
    content = saved(small(best_score=score))
    with pytest.raises(CheckpointError, match=r"numpy\S*scalar.*safe_globals"):
        read(tmp_path / "x.pth", content)
    function, (dtype, _) = score.__reduce__()  # type: ignore[misc]
    with torch.serialization.safe_globals([function, np.dtype, type(dtype)]):
        assert list(read(tmp_path / "x.pth", content)) == ["a.weight", "cls_head.b"]


def test_what_is_no_file_of_tensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read_tensors(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="directory; load_adapters"):
        read_tensors(tmp_path)
    for name in ("a" * 5000, "a\0b", "/dev/zero", "a/" * 5000):
        with pytest.raises(CheckpointError, match=r"does not exist|no regular file"):
            read_tensors(name)
    for content in (b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"version https://git-lfs", saved(3), saved([small()])):
        with pytest.raises(CheckpointError):
            read(tmp_path / "x.pth", content)
    with pytest.raises(TypeError, match="NoneType"):
        read_tensors(None)  # type: ignore[arg-type]


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(saved(small()))
    with (
        zipfile.ZipFile(tmp_path / "x.pth") as stored,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(CheckpointError, match="compressed"):
        read_tensors(tmp_path / "bomb.pth")


def test_truncated_files_are_refused_at_every_length(tmp_path: Path) -> None:
    content = saved(small())
    for length in range(0, len(content), 7):
        with pytest.raises(CheckpointError):
            read(tmp_path / "x.pth", content[:length])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    zipped=st.booleans(), edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1)
)
def test_damaged_bytes_never_raise_anything_else(tmp_path: Path, zipped: bool, edits: list[tuple[float, int]]) -> None:
    content = bytearray(saved(small(), _use_new_zipfile_serialization=zipped))
    for place, byte in edits:
        content[int(place * len(content))] = byte
    try:
        read(tmp_path / "x.pth", bytes(content))
    except CheckpointError:
        pass


LOOP: dict[str, Any] = {}
LOOP["state_dict"] = LOOP

HOSTILE: dict[str, tuple[Any, str]] = {
    "a list": ({"state_dict": [1, 2]}, "must hold a state dict, got a list"),
    "a loop": (LOOP, "'state_dict' must be a tensor, got a dict"),
    "a number": ({"x": 3}, "'x' must be a tensor, got a int"),
    "a key": ({3: torch.ones(1)}, "every key must be a string, got 3"),
    "nan": ({"x": torch.tensor([1.0, float("nan")])}, "'x' holds NaN or inf"),
    "inf": ({"x": torch.tensor([float("inf")]).half()}, "'x' holds NaN or inf"),
    "a view": ({"x": torch.zeros(1).expand(10**9, 10**9)}, "claims the shape"),
    "sparse": ({"x": torch.eye(3).to_sparse()}, "dense"),
    "meta": ({"x": torch.zeros(3, device="meta")}, "dense tensor with values"),
    "complex": ({"x": torch.zeros(3, dtype=torch.complex64)}, "complex64"),
    "eight bits": ({"x": torch.zeros(3).to(torch.float8_e4m3fn)}, "float8_e4m3fn"),
    "twice": ({"module.backbone.x": torch.zeros(3), "x": torch.zeros(3)}, "holds 'x' twice"),
}


def test_attributes_of_a_dictionary_are_not_called() -> None:
    state: Any = OrderedDict(x=torch.ones(2))
    content: Any = OrderedDict(state_dict=state)
    for mapping in (state, content):
        mapping.items = mapping.get = mapping.keys = 3
    assert list(read_tensors(content)) == list(read_tensors(state)) == ["x"]


@pytest.mark.parametrize("case", HOSTILE)
def test_entries_that_are_not_plain_finite_tensors_are_refused(case: str) -> None:
    content, message = HOSTILE[case]
    with pytest.raises(CheckpointError, match=message):
        require_finite(read_tensors(content))
