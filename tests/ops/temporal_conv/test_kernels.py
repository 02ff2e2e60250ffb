"""The kernels compile for a GPU that need not be there, and keep their windows in registers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.harness import ROOT

pytest.importorskip("triton", minversion="3.4")  # as launches go through `ops.launch` from there on


def test_compile_without_spilling() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.checks.architectures", "--sm", "90", "--only", "over frames, 192 wide"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("forward_kernel") == done.stdout.count("backward_kernel") == 4
    assert "spilled" not in done.stdout
