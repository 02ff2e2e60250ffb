"""Clocks and meters of a GPU and of a CPU."""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.timing.temporal_attention import Effort, GraphClock, ceilings

Step = Callable[[], Any]


class Kernel(NamedTuple):
    """A piece of work of a GPU."""

    name: str
    seconds: float
    grid: tuple[int, ...]


class Gpu:
    """Time steps and read meters on a GPU."""

    device = "cuda"

    def times(self, step: Step, repeats: int) -> list[float]:
        """Return the seconds of steps that follow one another, as in training: the host may run ahead."""
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        events[0].record()
        for event in events[1:]:
            step()
            event.record()
        torch.cuda.synchronize()
        return [1e-3 * a.elapsed_time(b) for a, b in pairwise(events)]

    def alone(self, step: Step, repeats: int = 5) -> dict[str, float]:
        """Return the seconds of a step that finds an idle GPU and is waited for, and those until the host is free.

        A host that fills the GPU's queue, about a thousand launches, waits there; then the second is a bound only.
        """
        found: dict[str, list[float]] = {"latency_seconds": [], "host_seconds": []}
        for _ in range(repeats):
            torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            found["host_seconds"].append(time.perf_counter() - start)
            torch.cuda.synchronize()
            found["latency_seconds"].append(time.perf_counter() - start)
        return {name: statistics.median(seconds) for name, seconds in found.items()}

    def joules(self, step: Step, repeats: int) -> float | None:
        """Return the energy of a step, of the whole board; None if the driver does not tell."""
        if self._board is None:
            return None
        torch.cuda.synchronize()
        before = self._board()
        for _ in range(repeats):
            step()
        torch.cuda.synchronize()
        return 1e-3 * (self._board() - before) / repeats

    @cached_property
    def _board(self) -> Callable[[], int] | None:
        """Return what reads the board's counter of millijoules."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except pynvml.NVMLError:
            return None
        return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)

    def held(self) -> int:
        """Return the bytes allocated now, and count the peak anew."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        """Return the most bytes that were allocated."""
        return torch.cuda.max_memory_allocated()

    def forget(self) -> None:
        """Give free memory back."""
        gc.collect()
        torch.cuda.empty_cache()

    def ceiling(self) -> float | None:
        """Return the rate of a large product in bf16, in floating-point operations per second."""
        return ceilings(GraphClock(), "cuda", Effort(copy_bytes=(2**28,)))["bf16_flop_per_second"]

    def kernels(self, step: Step, repeats: int) -> list[Kernel]:
        """Return what the GPU ran in some steps."""
        from torch.profiler import ProfilerActivity, profile

        step()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
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


class Cpu:
    """Time steps on a CPU, which has no meters."""

    device = "cpu"

    def times(self, step: Step, repeats: int) -> list[float]:
        """Return the seconds of each step."""
        stamps = [time.perf_counter()]
        for _ in range(repeats):
            step()
            stamps.append(time.perf_counter())
        return [b - a for a, b in pairwise(stamps)]

    def alone(self, step: Step, repeats: int = 5) -> dict[str, float]:
        """Return nothing: there is no other device to wait for."""
        return {}

    def joules(self, step: Step, repeats: int) -> float | None:
        """Return nothing."""
        return None

    def held(self) -> int:
        """Return nothing held."""
        return 0

    def peak(self) -> int | None:
        """Return nothing: memory is not counted."""
        return None

    def forget(self) -> None:
        """Do nothing."""

    def ceiling(self) -> float | None:
        """Return nothing."""
        return None

    def kernels(self, step: Step, repeats: int) -> list[Kernel]:
        """Return nothing."""
        return []


Machine = Gpu | Cpu
