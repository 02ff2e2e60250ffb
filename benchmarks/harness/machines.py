"""A GPU and a CPU as what steps are timed on: clocks, and the meters that each has."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import cached_property

import torch

from benchmarks.harness import memory
from benchmarks.harness.clocks import GraphClock, Step, event_seconds, seconds_of, time_call
from benchmarks.harness.profiler import Kernel, profile
from benchmarks.harness.roofline import Effort, ceilings


class Gpu:
    """Time steps and read meters on a GPU."""

    device = "cuda"

    def times(self, step: Step, repeats: int) -> list[float]:
        """Return the seconds of steps that follow one another, as in training: the host may run ahead."""
        return event_seconds([step] * repeats)

    def alone(self, step: Step, repeats: int = 5) -> dict[str, float]:
        """Return the seconds of a step that finds an idle GPU and is waited for, and those until the host is free."""
        calls = [time_call(step, self.device) for _ in range(repeats)]
        return {
            "latency_seconds": statistics.median(call.latency for call in calls),
            "host_seconds": statistics.median(call.host for call in calls),
        }

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
        return memory.held()

    def peak(self) -> int:
        """Return the most bytes that were allocated."""
        return memory.peak()

    def forget(self) -> None:
        """Give free memory back."""
        memory.forget()

    def ceiling(self) -> float | None:
        """Return the rate of a large product in bf16, in floating-point operations per second."""
        return ceilings(GraphClock(), self.device, Effort(copy_bytes=(2**28,)))["bf16_flop_per_second"]

    def kernels(self, step: Step, repeats: int) -> list[Kernel]:
        """Return what the GPU ran in some steps."""
        return profile(step, repeats)


class Cpu:
    """Time steps on a CPU, which has no meters."""

    device = "cpu"

    def times(self, step: Step, repeats: int) -> list[float]:
        """Return the seconds of each step."""
        return [seconds_of(step) for _ in range(repeats)]

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
