"""What a call of temporal attention costs the host, and what the first call of a process costs.

`start_up` begins processes of ``python -m benchmarks.timing.temporal_host CASE DEVICE``, which print the seconds of
their first two calls.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict

import torch

from benchmarks.harness import ROOT, host_timing, time_call
from benchmarks.timing.temporal_peers import Case, Inputs, build, passes


def host_costs(device: str, *, dtype: str, calls: int, repeats: int = 7) -> dict[str, float]:
    """Return the seconds that the host needs for a call of each peer, on tensors too small to matter."""
    torch.compiler.reset()
    costs = {}
    for form, packed in (("packed", True), ("separate", False)):
        inputs = Inputs(Case("host", 8, tokens=4, heads=2, dim=16, dtype=dtype, packed=packed, images=16), device)
        for peer in ("triton", "triton compiled", "sdpa", "eager"):
            run = build(peer, inputs)
            for name, call in {
                "forward": run,  # recorded for a backward pass, as in training
                "forward+backward": passes(run, inputs)["forward+backward"],
            }.items():
                costs[f"{peer}, {form}, {name}"] = host_timing(call, device, calls=calls, repeats=repeats).median
    return costs


def first_calls(case: Case, device: str) -> list[float]:
    """Return the seconds of the first and the second forward and backward pass of this process."""
    inputs = Inputs(case, device)
    call = passes(build("triton", inputs), inputs)["forward+backward"]
    return [time_call(call, device).latency for _ in range(2)]


def start_up(case: Case, device: str) -> dict[str, list[float]]:
    """Return `first_calls` of a process that finds an empty cache of kernels, and of the next one."""
    command = [sys.executable, "-m", "benchmarks.timing.temporal_host", json.dumps(asdict(case)), device]
    seconds = {}
    with tempfile.TemporaryDirectory() as cache:
        for process in ("empty cache", "filled cache"):
            environment = {**os.environ, "TRITON_CACHE_DIR": cache}
            done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            seconds[process] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Print the seconds of the first calls of this process, as JSON, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("case", metavar="CASE", help="as JSON")
    parser.add_argument("device", choices=("cuda", "cpu"))
    arguments = parser.parse_args(argv)
    print(json.dumps(first_calls(Case(**json.loads(arguments.case)), arguments.device)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
