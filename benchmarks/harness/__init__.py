"""What all benchmarks share: clocks, meters, ceilings, and the file that a result is written to.

What other benchmarks may take from here is what this file names.
"""

from benchmarks.harness.accuracy import TOLERANCE, check_errors, relative_error
from benchmarks.harness.clocks import (
    Clock,
    GraphClock,
    Replay,
    Step,
    Timing,
    WallClock,
    alternate,
    host_timing,
    in_turn,
    measure,
    seconds_of,
    time_call,
)
from benchmarks.harness.environment import ROOT, record
from benchmarks.harness.machines import Cpu, Gpu, Machine
from benchmarks.harness.profiler import Kernel, read_trace
from benchmarks.harness.results import RESULTS, command, path_of, reason, report, write
from benchmarks.harness.roofline import Effort, ceilings
from benchmarks.harness.step_parts import PARTS, breakdown, part_of
from benchmarks.harness.targets import Target

__all__ = [
    "PARTS",
    "RESULTS",
    "ROOT",
    "TOLERANCE",
    "Clock",
    "Cpu",
    "Effort",
    "Gpu",
    "GraphClock",
    "Kernel",
    "Machine",
    "Replay",
    "Step",
    "Target",
    "Timing",
    "WallClock",
    "alternate",
    "breakdown",
    "ceilings",
    "check_errors",
    "command",
    "host_timing",
    "in_turn",
    "measure",
    "part_of",
    "path_of",
    "read_trace",
    "reason",
    "record",
    "relative_error",
    "report",
    "seconds_of",
    "time_call",
    "write",
]
