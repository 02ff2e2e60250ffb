"""Compile every kernel for every kind of GPU, none of which need be there, and hold it to the GPU's shared memory.

``python -m benchmarks.checks.architectures`` takes the sizes that models have, and the largest that the kernels claim;
``--thorough`` takes every kind of size that they tell apart. Where the library's tables fall back on a GPU, the reason
is printed; where they take a kernel, one of its tiles at least has to fit.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from benchmarks.checks.compiling import ARCHITECTURES, TENSOR_MEMORY, Architecture, Compiled, compiling_for
from benchmarks.checks.kernel_cases import Case, cases


class Row(NamedTuple):
    """A kernel at a size on a GPU, or why it is not taken."""

    case: str
    gpu: Architecture
    kernel: Compiled | None
    refused: str | None

    @property
    def fits(self) -> bool:
        """Whether the GPU has the memory that the kernel takes."""
        kernel = self.kernel
        return kernel is None or (kernel.shared <= self.gpu.bytes and kernel.tensor <= TENSOR_MEMORY)

    def __str__(self) -> str:
        where = f"sm_{self.gpu.sm:<4} {self.case:<58}"
        if self.kernel is None:
            return f"{where} falls back: {self.refused}"
        kernel, shared, limit = self.kernel, self.kernel.shared / 1024, self.gpu.shared
        spilled = f", {kernel.spilled} bytes spilled" if kernel.spilled else ""
        spilled += f", {kernel.tensor} columns of tensor memory" if kernel.tensor > TENSOR_MEMORY else ""
        return (
            f"{where} {kernel.kernel:<28} {kernel.warps:>2} warps {shared:6.1f} of {limit} KiB "
            f"{kernel.registers:>3} registers{spilled}" + ("" if self.fits else "  DOES NOT FIT")
        )


def compile_case(case: Case, gpu: Architecture) -> list[Row]:
    """Compile the kernels of a case for a GPU."""
    if (refused := case.refused(gpu)) is not None:
        return [Row(case.name, gpu, None, refused)]
    with compiling_for(gpu) as found:
        case.run()
    return [Row(case.name, gpu, each, None) for each in found]


def unfit(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the smallest alternative of each launch none of whose alternatives fits."""
    for _, group in groupby(rows, key=lambda row: (row.case, row.gpu, row.kernel and row.kernel.alternative)):
        found = list(group)
        if not any(row.fits for row in found):
            yield min(found, key=lambda row: row.kernel.shared if row.kernel else 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, print a table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sm", type=int, nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--thorough", action="store_true", help="every kind of size; takes an hour")
    arguments = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set: nothing is compiled")
    rows = []
    for sm in arguments.sm:
        for case in cases(thorough=arguments.thorough):
            if arguments.only in case.name:
                for row in compile_case(case, ARCHITECTURES[sm]):
                    rows.append(row)
                    print(row, flush=True)
    failed = list(unfit(rows))
    print(f"{len(rows)} rows, {len(failed)} kernels that fit nowhere", *failed, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
