"""Kernels are compiled for GPUs that are not there, and what does not fit is told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", minversion="3.4")  # as launches go through `ops.launch` from there on

from benchmarks.checks.architectures import Row, unfit
from benchmarks.checks.compiling import ARCHITECTURES, Compiled
from benchmarks.checks.kernel_cases import cases
from benchmarks.harness import ROOT

ADA = ARCHITECTURES[89]


def row(shared: int, alternative: int = 1, tensor: int = 0) -> Row:
    return Row("a case", ADA, Compiled("a_kernel", 4, 1024 * shared, tensor, 32, 0, alternative), None)


def test_one_of_the_alternatives_has_to_fit() -> None:
    assert not list(unfit([row(100), row(99), Row("another", ADA, None, "too large")]))
    assert list(unfit([row(120), row(100), row(90, alternative=2)])) == [row(100)]
    assert list(unfit([row(90, tensor=513)])) == [row(90, tensor=513)]
    assert "100.0 of 99 KiB" in str(row(100)) and str(row(100)).endswith("DOES NOT FIT")
    assert "falls back: too large" in str(Row("another", ADA, None, "too large"))


def test_tables_refuse_what_small_gpus_cannot_hold() -> None:
    refused = {case.name: case.refused(ADA) for case in cases()}
    assert "128 KiB of shared memory" in str(refused["temporal attention, 128 frames, 64 wide, bfloat16"])
    assert refused["temporal attention, 8 frames, 64 wide, bfloat16"] is None


def test_the_command() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [
        sys.executable,
        "-m",
        "benchmarks.checks.architectures",
        "--sm",
        "89",
        "--only",
        "norms, 768 wide, bfloat16",
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "layer_norm_backward_kernel" in done.stdout
    assert "0 kernels that fit nowhere" in done.stdout
