"""What a GPU ran, from PyTorch's profiler."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.harness.clocks import Step


class Kernel(NamedTuple):
    """A piece of work of a GPU."""

    name: str
    seconds: float
    grid: tuple[int, ...]


def profile(step: Step, repeats: int) -> list[Kernel]:
    """Return what the GPU ran in some steps; one before them is not counted."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiling

    step()
    torch.cuda.synchronize()
    # There is one cycle, whose events are all kept; without saying so PyTorch 2.11 warns.
    with profiling(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for _ in range(repeats):
            step()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return read_trace(path)


def read_trace(path: Path) -> list[Kernel]:
    """Return the work of a GPU that a trace of the profiler holds."""
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return [
        Kernel(event["name"], 1e-6 * event["dur"], tuple(event["args"].get("grid", ())))
        for event in events
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    ]
