"""How near do the parts of a training step between its matrix products come to the time that their bytes need?

``python -m benchmarks.timing.parts`` on a GPU; ``--tune`` times other tiles of our kernels instead, and writes nothing.
Peers are timed in turn in one run, replayed from a CUDA graph. What differs from float64 by more than rounding is not
timed. ``aten`` are PyTorch's own operators, ``compiled`` is what a compiler makes of the plain formulas. An MLP's
activation and an adapter's hidden layer are columns of one tensor, as they are where the adapter is beside the MLP.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import (
    Clock,
    Effort,
    GraphClock,
    Replay,
    Target,
    alternate,
    ceilings,
    check_errors,
    command,
    reason,
    record,
    write,
)
from benchmarks.timing.parts_peers import (
    OF_ACTIVATIONS,
    OF_ADAPTERS,
    OF_TOKENS,
    PARTS,
    Case,
    Inputs,
    build,
    errors,
    implementation,
    peers,
    run,
)
from benchmarks.timing.parts_tiles import tune

NAME = "parts"
EFFORT = Effort(rounds=7, batch=2e-3, copy_bytes=(2**28, 2**30, 2**32), warmup=0.5)
SHARES = {**dict.fromkeys(PARTS, 0.85), **dict.fromkeys(OF_ADAPTERS, 0.6)}


def cases() -> list[Case]:
    """Return everything that is measured; compiling takes longest, so only what is usual is compiled."""
    return [
        *(Case(part, "ViT-B", compiled=True) for part in PARTS),
        *(Case(part, "ViT-B", stream="float32") for part in OF_TOKENS),
        *(Case(part, "ViT-B", kind="quick_gelu") for part in OF_ACTIVATIONS),
        *(Case(part, "ViT-B", factor=True) for part in OF_ADAPTERS),
        *(Case(part, "ViT-L") for part in PARTS),
    ]


def measure_case(case: Case, clock: Clock, device: str, *, bandwidth: float, effort: Effort) -> dict[str, Any]:
    """Return the times of every peer, held against the bytes."""
    torch.compiler.reset()  # else what was compiled for earlier cases counts against a limit
    exact = run(implementation("aten"), Inputs.of(case, device).double())
    replays: dict[str, Replay] = {}
    row: dict[str, Any] = {"case": asdict(case), "bytes": case.bytes, "peers": {}}
    for peer in peers(case):
        entry = row["peers"][peer] = {}
        try:
            each = build(peer, Inputs.of(case, device))
            with torch.no_grad():
                entry["errors"] = errors(each(), exact)
                check_errors(entry["errors"], case.low)
                replays[peer] = clock.prepare(each)
        except Exception as error:  # whatever a peer throws is its result
            entry["error"] = reason(error)
    for peer, timing in alternate(replays, rounds=effort.rounds, batch=effort.batch).items():
        rate = case.bytes / timing.median
        row["peers"][peer] |= {**asdict(timing), "bytes_per_second": rate, "share_of_copy": rate / bandwidth}
    return row


def describe(row: Mapping[str, Any]) -> str:
    """Return a row as a line for each peer."""
    case = row["case"]
    what = case["kind"] if case["part"] in OF_ACTIVATIONS else f"stream {case['stream']}"
    if case["part"] in OF_ADAPTERS:
        what = "a factor for each clip" if case["factor"] else "no factor"
    lines = [f"{case['size']} {case['part']}, {what}: {row['bytes'] / 1e6:.0f} MB"]
    for peer, entry in row["peers"].items():
        if "error" in entry:
            lines.append(f"  {peer:<14} {entry['error'][:140]}")
        else:
            time, share, error = 1e6 * entry["median"], 100 * entry["share_of_copy"], max(entry["errors"])
            lines.append(f"  {peer:<14} {time:8.1f} us  {share:5.1f} % of copy  error {error:.1e}")
    return "\n".join(lines)


def targets(rows: Sequence[Mapping[str, Any]]) -> list[Target]:
    """Hold our kernels against the bytes."""
    found = []
    for row in rows:
        share = row["peers"]["triton"].get("share_of_copy", 0.0)  # nothing of ours is a target missed
        least = SHARES[row["case"]["part"]]
        found.append(Target(f"{describe(row).splitlines()[0]}: share of copy bandwidth", share, least))
    return found


def measure(wanted: Sequence[Case], folder: Path | None, *, clock: Clock, device: str, effort: Effort = EFFORT) -> int:
    """Measure, write the result as it grows, and return the exit status."""
    started = time.perf_counter()
    rates = ceilings(clock, device, effort)
    result: dict[str, Any] = {
        "benchmark": NAME,
        "command": command(NAME),
        "question": "GPU time of the parts between matrix products, against the time that their bytes need",
        "complete": False,
        "ran_on": record(),
        "ceilings": rates,
        "rows": [],
    }
    for case in wanted:
        row = measure_case(case, clock, device, bandwidth=rates["copy_bytes_per_second"], effort=effort)
        result["rows"].append(row)
        write(NAME, result, folder)
        print(f"[{time.perf_counter() - started:4.0f} s] {describe(row)}", flush=True)
    held = targets(result["rows"])
    met = all(target.met for target in held)
    result |= {"targets": [each.entry() for each in held], "met": met, "complete": True}
    write(NAME, result, folder)
    print("\n".join(("targets:", *map(str, held))))
    return 0 if met else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the result")
    parser.add_argument("--tune", action="store_true", help="time other tiles of our kernels")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("needs a GPU")
    wanted = [case for case in cases() if case.part in arguments.parts]
    if not arguments.tune:
        return measure(wanted, arguments.out, clock=GraphClock(), device="cuda")
    for case in wanted:
        seconds = tune(case, GraphClock(), "cuda", effort=EFFORT)
        print(case)
        print("\n".join(f"  {1e6 * each:8.1f} us  {name}" for name, each in seconds.items()), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
