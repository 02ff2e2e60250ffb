"""Arguments are checked, the implementation is chosen by a table, and a name asked for is the one that runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from aim_adapters.errors import ConfigError, InputError, UnsupportedKernelError
from aim_adapters.ops import device
from aim_adapters.ops.choice import Choice
from aim_adapters.ops.temporal_conv import Case, choose, temporal_conv_gelu

GPU = Case("cuda", torch.bfloat16, kernel=3, missing=None)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("case", "implementation", "reason"),
    [
        (GPU, "triton", "reads and writes what the projections do"),
        (GPU._replace(dtype=torch.float16, kernel=31), "triton", "reads and writes"),
        (GPU._replace(dtype=torch.float32, kernel=1), "triton", "reads and writes"),
        (GPU._replace(kernel=33), "eager", "up to 31 taps, got 33"),
        (GPU._replace(dtype=torch.float64), "eager", "got torch.float64"),
        (GPU._replace(missing="Triton is not installed"), "eager", "Triton is not installed"),
        (GPU._replace(exporting=True), "eager", "an exported model must run without this package"),
        (GPU._replace(device="cpu"), "eager", "Triton only interprets its kernels on this device"),
        (GPU._replace(device="cpu", missing="Triton does not run on a CPU"), "eager", "Triton does not run on a CPU"),
    ],
)
def test_table(case: Case, implementation: str, reason: str) -> None:
    choice = choose("auto", case)
    assert choice.implementation == implementation
    assert reason in choice.reason
    assert choose("eager", case) == Choice("eager", "asked for by name")
    if choice.implementation == "triton" or case.exporting or (case.device == "cpu" and case.missing is None):
        assert choose("triton", case) == Choice("triton", "asked for by name")
    else:
        with pytest.raises(UnsupportedKernelError, match=reason):
            choose("triton", case)


def test_a_name_never_falls_back(no_triton: None) -> None:
    call = {"h": zeros(8, 3, 4), "weight": zeros(4, 3), "bias": zeros(4), "num_frames": 4}
    temporal_conv_gelu(**call)
    with pytest.raises(
        UnsupportedKernelError,
        match=r"implementation='triton' was asked for, but .*; use 'auto', which falls back, or 'eager'$",
    ):
        temporal_conv_gelu(**call, implementation="triton")
    with pytest.raises(ConfigError, match=r"implementation must be 'auto', 'triton' or 'eager', got 'sdpa'"):
        temporal_conv_gelu(**call, implementation="sdpa")


def test_triton_3_2_cannot_compile_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip("triton"), "__version__", "3.2.0")
    monkeypatch.setattr(device, "_missing", {})
    monkeypatch.setattr(device, "_version", {})
    tensors = [x.cuda() if torch.cuda.is_available() else x for x in (zeros(8, 3, 4), zeros(4, 3), zeros(4))]
    temporal_conv_gelu(*tensors, num_frames=4)
    with pytest.raises(UnsupportedKernelError, match=r"but its kernels need Triton 3\.3; use 'auto'"):
        temporal_conv_gelu(*tensors, num_frames=4, implementation="triton")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"h": zeros(8)}, r"takes h \[B\*T, ..., W\], weight \[W, K\] with K odd and bias \[W\], got h \(8,\)"),
        ({"h": zeros(8, 3, 5)}, r"got h \(8, 3, 5\), weight \(4, 3\), bias \(4,\)"),
        ({"weight": zeros(4, 2)}, r"K odd .*weight \(4, 2\)"),
        ({"weight": zeros(4, 0)}, r"K odd .*weight \(4, 0\)"),
        ({"weight": zeros(4, 1, 3)}, r"weight \(4, 1, 3\)"),
        ({"weight": zeros(3, 3)}, r"weight \(3, 3\)"),
        ({"bias": zeros(3)}, r"bias \(3,\)"),
        ({"bias": zeros(1, 4)}, r"bias \(1, 4\)"),
        ({"h": zeros(8, 3, 4).int()}, "must be floating point, got torch.int32, torch.float32, torch.float32"),
        ({"weight": zeros(4, 3).int()}, "must be floating point, got torch.float32, torch.int32"),
        ({"bias": zeros(4).to("meta")}, "on one device, got cpu, cpu, meta"),
        ({"num_frames": 3}, r"multiple of num_frames=3, got h \(8, 3, 4\).*; pass whole clips"),
        ({"num_frames": 0}, "multiple of num_frames=0"),
        ({"num_frames": -4}, "multiple of num_frames=-4"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"h": zeros(8, 3, 4), "weight": zeros(4, 3), "bias": zeros(4), "num_frames": 4}
    temporal_conv_gelu(**call)
    with pytest.raises(InputError, match=message):
        temporal_conv_gelu(**{**call, **changed})
