"""Hold the trace of a profiler to what is read of it."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.harness import Kernel, read_trace


def test_a_trace_is_read(tmp_path: Path) -> None:
    events = [
        {"cat": "kernel", "name": "a", "dur": 4, "args": {"grid": [3, 2, 1]}},
        {"cat": "gpu_memcpy", "name": "b", "dur": 2, "args": {}},
        {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "dur": 9, "args": {}},
        {"name": "process_name", "args": {}},
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}))
    assert read_trace(path) == [Kernel("a", 4e-6, (3, 2, 1)), Kernel("b", 2e-6, ())]
