"""How much does ``import aim_adapters`` add to ``import torch``?

``python -m benchmarks.timing.import_time``. Fresh processes import torch alone and torch with aim_adapters, in turn, so
that a drift of the machine meets both alike. The number is the median of the differences within a turn.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

from benchmarks.harness import Timing, report

TARGET = 0.3
PROGRAM = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def import_seconds(modules: str) -> float:
    """Import ``modules`` in a fresh process and return the seconds that took, without the interpreter's own start."""
    command = [sys.executable, "-c", PROGRAM.format(modules)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> int:
    """Measure, write the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    import_seconds("torch, aim_adapters")  # fills the file cache and writes byte code
    alone, together = [], []
    for _ in range(repeats):
        alone.append(import_seconds("torch"))
        together.append(import_seconds("torch, aim_adapters"))
    added = [b - a for a, b in zip(alone, together, strict=True)]
    return report(
        "import_time",
        "import aim_adapters adds to import torch",
        seconds=statistics.median(added),
        target=TARGET,
        details={
            "import torch": Timing.of(alone),
            "import torch, aim_adapters": Timing.of(together),
            "difference": Timing.of(added),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
