"""Launches of Triton's kernels at little cost to the host.

Triton decides at every launch anew which compiled kernel serves the arguments, and asks the driver about each pointer.
Here a kernel that was launched once is found again by the facts that Triton decides by, and gets plain addresses. A
step of few clips consists of little else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

Grid = int | Callable[[Mapping[str, Any]], int]

# From 3.4 on a compiled kernel takes all arguments in order, and Triton says whether a profiler watches. AMD's compiler
# decides by the size of tensors as well.
_DIRECT = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 4) and torch.version.hip is None
_RUNTIME: Any = triton.knobs.runtime if _DIRECT else None
_ALIGNED = 16  # bytes: what Triton tells apart


class _Ready(NamedTuple):
    """A compiled kernel, ready to be launched.

    Attributes:
        run: Launches it.
        function: Its handle.
        metadata: What its launcher needs beside that.
        constants: The values of its constants, in order; they follow the arguments.
        meta: The same by name, with those that tuning chose.
    """

    run: Any
    function: Any
    metadata: Any
    constants: tuple[Any, ...]
    meta: dict[str, Any]


_ready: dict[tuple[Any, ...], _Ready] = {}


def launch(kernel: Any, grid: Grid, *args: Any, **constants: Any) -> None:
    """Launch a kernel on the current stream of its tensors' device.

    Args:
        kernel: A Triton kernel, also a tuned or an interpreted one. Its constants follow its arguments.
        grid: The number of programs, or a function of the constants that returns it.
        *args: Its arguments: tensors of one device, integers, floats, None.
        **constants: Its constants by name, with ``num_warps`` and ``num_stages``.
    """
    values: list[Any] = []
    facts: list[Any] = []
    index = -1
    for arg in args:
        if isinstance(arg, Tensor):
            address, index = arg.data_ptr(), arg.get_device()
            values.append(address)
            facts += (arg.dtype, address % _ALIGNED == 0)
        else:
            values.append(arg)
            facts.append(arg)
    if index < 0:
        _launch_by_triton(kernel, grid, args, constants)
        return None
    if index != torch._C._cuda_getDevice():
        with torch.cuda.device(index):
            return launch(kernel, grid, *args, **constants)
    # Numbers by their value, which is more than Triton asks for; there are few of them in a run.
    key = (kernel, index, *facts, *constants, *constants.values())
    ready = _ready.get(key) if _DIRECT else None
    if ready is None or _watched():
        compiled = _launch_by_triton(kernel, grid, args, constants)
        if _DIRECT:
            _ready[key] = ready or _prepare(kernel, compiled, len(args), constants)
        return None
    programs = grid if isinstance(grid, int) else grid(ready.meta)
    stream = torch._C._cuda_getCurrentRawStream(index)
    run, function, metadata, names, _ = ready
    run(programs, 1, 1, stream, function, metadata, None, None, None, *values, *names)
    return None


def _watched() -> bool:
    """Return whether a profiler wants to know of launches, which Triton tells it."""
    hook: Any = _RUNTIME.launch_enter_hook
    return hook is not None and bool(getattr(hook, "calls", True))


def _launch_by_triton(kernel: Any, grid: Grid, args: tuple[Any, ...], constants: dict[str, Any]) -> Any:
    return kernel[(grid,) if isinstance(grid, int) else lambda meta: (grid(meta),)](*args, **constants)


def _prepare(kernel: Any, compiled: Any, count: int, constants: dict[str, Any]) -> _Ready:
    tuned = kernel.best_config.all_kwargs() if hasattr(kernel, "best_config") else {}
    meta = {**constants, **tuned}
    names = kernel.arg_names[count:]
    return _Ready(compiled.run, compiled.function, compiled.packed_metadata, tuple(meta[name] for name in names), meta)


# Triton's own take several microseconds each, as kernels may call them too.


def cdiv(number: int, divisor: int) -> int:
    """Return the quotient, rounded up."""
    return -(-number // divisor)


def next_power_of_2(number: int) -> int:
    """Return the smallest power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()
