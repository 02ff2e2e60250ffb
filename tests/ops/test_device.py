"""What the machine can do is looked up once, and said in words where it cannot."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from aim_adapters.ops import device


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("cpu", "Triton does not run on a CPU"),
        ("cuda", "need a GPU, got cuda"),
        ("any", "need a GPU, got none"),
        ("mps", "need a GPU, got mps"),
    ],
)
def test_triton_without_a_gpu(kind: str, reason: str, no_triton: None) -> None:
    found = device.triton_missing(kind)
    assert found is not None
    assert reason in found


@pytest.mark.parametrize(("capability", "runs"), [((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True)])
def test_triton_needs_ampere(
    capability: tuple[int, int], runs: bool, no_triton: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(device, "_cannot_build", lambda: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(shared_memory_per_block_optin=166_912)
    )
    device._missing.clear()
    assert (device.triton_missing("cuda") is None) is runs
    assert device.shared_memory("cuda") == 166_912


@pytest.mark.parametrize(
    ("capability", "version", "crowded"),
    [((10, 0), "3.6.0", True), ((10, 3), "3.7.1", True), ((10, 0), "3.8.0", False), ((12, 0), "3.6.0", False)],
)
def test_tensor_memory_before_triton_3_8(
    capability: tuple[int, int], version: str, crowded: bool, no_triton: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace())
    monkeypatch.setattr(triton, "__version__", version)
    assert device.tensor_memory_crowded("cuda") is crowded
    assert not device.tensor_memory_crowded("cpu")


def test_device_that_does_not_tell_its_shared_memory(no_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """So PyTorch 2.6, and PyTorch for ROCm."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(major=8))
    assert device.shared_memory("cuda") in (99 * 1024, 64 * 1024)


def test_what_triton_needs_to_build(no_triton: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace())
    monkeypatch.setattr(device.os, "name", "posix")
    monkeypatch.setattr(device.sysconfig, "get_path", lambda *_: str(tmp_path))
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert "needs a C compiler" in str(device._why_missing("cuda"))
    monkeypatch.setenv("CC", "tcc")
    assert "needs Python's headers" in str(device._why_missing("any"))
    (tmp_path / "Python.h").touch()
    assert device._why_missing("cuda") is None
    monkeypatch.delenv("CC")
    monkeypatch.setattr(device.shutil, "which", lambda name: name if name == "clang" else None)
    assert device._why_missing("cuda") is None


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:FutureWarning", "ignore:.torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("told", [True, False])
def test_exporting_is_noticed(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 2.6 has no `is_exporting`."""
    spec = importlib.util.spec_from_file_location("device_anew", str(device.__file__))
    assert spec is not None and spec.loader is not None
    anew = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "device_anew", anew)
    with monkeypatch.context() as old:
        if not told:
            old.delattr(torch.compiler, "is_exporting", raising=False)
        spec.loader.exec_module(anew)

    class Probe(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + (1 if anew.exporting() else 0)

    x = torch.zeros(1)
    assert Probe()(x) == 0
    assert torch.export.export(Probe(), (x,), strict=False).module()(x) == 1
    assert torch.jit.trace(Probe(), (x,), check_trace=False)(x) == 1
    torch._dynamo.reset()
    assert torch.compile(Probe(), backend="eager", fullgraph=True)(x) == 0  # compiling is no export
