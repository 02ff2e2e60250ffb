"""Compile the kernels that the library launches, for a GPU that need not be there.

The library's own code chooses sizes and constants, on tensors of the meta device; where it would launch a kernel,
Triton compiles it for the given architecture instead.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from aim_adapters.ops import device, launch

DISASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
TENSOR_MEMORY = 512  # columns that a program may use of Blackwell's accumulators


class Architecture(NamedTuple):
    """A kind of GPU.

    Attributes:
        sm: Its compute capability, times ten.
        gpus: Some that are sold.
        shared: KiB of shared memory that one program may use.
    """

    sm: int
    gpus: str
    shared: int

    @property
    def bytes(self) -> int:
        """Bytes of shared memory that one program may use."""
        return 1024 * self.shared


ARCHITECTURES = {
    each.sm: each
    for each in (
        Architecture(80, "A100", 163),
        Architecture(86, "RTX 3090, A10", 99),
        Architecture(89, "RTX 4090, L4", 99),
        Architecture(90, "H100, H200", 227),
        Architecture(100, "B200", 227),
        Architecture(120, "RTX 5090", 99),
    )
}


class Compiled(NamedTuple):
    """A compiled kernel.

    Attributes:
        kernel: Its name.
        warps: Warps of a program.
        shared: Bytes of shared memory that a program takes.
        tensor: Columns of tensor memory that a program takes, on data center Blackwell.
        registers: Registers of a thread.
        spilled: Bytes of a thread's stack, where registers are put that are too many.
        alternative: Number of the launch that it belongs to: tuning chooses among those of one launch.
    """

    kernel: str
    warps: int
    shared: int
    tensor: int
    registers: int
    spilled: int
    alternative: int


class _Driver:
    """What Triton asks for the current GPU."""

    def __init__(self, sm: int) -> None:
        self.target = GPUTarget("cuda", sm, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return int(self.target.arch)  # kernels are kept by it

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


@contextlib.contextmanager
def compiling_for(architecture: Architecture) -> Iterator[list[Compiled]]:
    """Compile for an architecture what is launched on meta tensors meanwhile, and note it in the list that is yielded.

    Triton takes the architecture for the GPU that is there for the rest of the process.
    """
    found: list[Compiled] = []
    launches = 0

    def compile_instead(kernel: Any, grid: Any, args: tuple[Any, ...], constants: dict[str, Any]) -> None:
        nonlocal launches
        launches += 1
        compiled = kernel.warmup(*args, grid=(1,), **constants)
        for each in compiled if isinstance(compiled, list) else [compiled]:
            meta, tensor = each.metadata, getattr(each.metadata, "tmem_size", None) or 0
            usage = _usage(each.asm["cubin"])
            found.append(Compiled(meta.name, meta.num_warps, meta.shared, tensor, *usage, launches))

    driver.set_active(_Driver(architecture.sm))
    with (
        mock.patch.dict(device._shared_memory, {"meta": architecture.bytes}),
        mock.patch.object(launch, "_launch_by_triton", compile_instead),
    ):
        yield found


def _usage(cubin: bytes) -> tuple[int, int]:
    """Return registers and bytes of stack of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(DISASSEMBLER), "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = USAGE.search(text)
    if found is None:
        raise RuntimeError(f"no registers in what {' '.join(command)} says: {text}")
    return int(found[1]), int(found[2])
