"""Read and refuse files of safetensors that tests write byte by byte."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from aim_adapters.errors import CheckpointError
from aim_adapters.storage.files import open_weights

NAME = "x.safetensors"
ROW = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
IN_ONE_DIRECTORY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda text: text != "__metadata__")


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Return a tensor of any bits: NaN, infinities and subnormal numbers too."""
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    size = torch.Size(shape).numel() * dtype.itemsize
    content = bytearray(draw(st.binary(min_size=size, max_size=size)))
    return torch.frombuffer(content, dtype=dtype).view(shape) if content else torch.empty(shape, dtype=dtype)


def pack(header: Any, data: bytes = bytes(8)) -> bytes:
    """Return a safetensors file with any header."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(content).to_bytes(8, "little") + content + data


def read(path: Path) -> dict[str, Tensor]:
    with open_weights(path) as file:
        return {key: file.read(key) for key in file.shapes}


def assert_refused(path: Path, content: bytes, match: str = "") -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=match) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1500


def count(directory: Path) -> int:
    return sum(1 for _ in directory.iterdir())


def as_bytes(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
