"""How near does temporal attention come to the time that its bytes need, and how far behind are its peers?

``python -m benchmarks.timing.temporal_attention`` on a GPU; ``--quick`` measures the main case alone. Peers are timed
in turn in one run, each forward (and backward) pass replayed from a CUDA graph, so that kernels alone count. What
differs from float64 by more than rounding is not timed. The result is written after every case.

A unit is the bytes of the queries. The forward pass has to read three and write one; the backward pass reads four
(the output's gradient too) and writes three. That over the time is held against the bandwidth of a copy in this run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
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
from benchmarks.timing.temporal_host import host_costs, start_up
from benchmarks.timing.temporal_peers import Case, Inputs, build, errors, passes

NAME = "temporal_attention"
UNITS = {"forward": 4, "forward+backward": 11}
SPEEDUPS = {8: 18.0, 16: 12.0, 32: 9.0, 64: 1.0, 128: 1.0}
BANDWIDTH_SHARE = 0.8
OURS_AND_SDPA = ("triton", "sdpa")
CASES = (
    *(Case("main", frames) for frames in SPEEDUPS),
    Case("swin", 16, tokens=3136, heads=4, dim=32, bias=True),
    Case("swin", 16, tokens=196, heads=16, dim=32, bias=True),
    *(Case("separate", frames, packed=False, peers=OURS_AND_SDPA) for frames in SPEEDUPS),
    *(Case("widths", frames, heads=16, peers=OURS_AND_SDPA) for frames in (8, 16, 32)),
    *(Case("widths", frames, heads=16, dim=80, peers=OURS_AND_SDPA) for frames in (8, 32)),
    *(Case("widths", frames, heads=8, dim=128, peers=OURS_AND_SDPA) for frames in (8, 32, 128)),
    *(Case("dtypes", frames, dtype="float16", peers=OURS_AND_SDPA) for frames in (8, 64)),
    *(Case("dtypes", frames, dtype="float32", peers=OURS_AND_SDPA) for frames in (8, 64)),
    *(Case("lengths", frames, peers=OURS_AND_SDPA) for frames in (1, 4, 12, 24, 48, 96)),
)  # fmt: skip


def measure_case(
    case: Case, clock: Clock, device: str, *, bandwidth: float, effort: Effort
) -> Iterator[dict[str, Any]]:
    """Yield a row for each pass of a case: the times of every peer, held against the bytes and against SDPA."""
    torch.compiler.reset()  # else what was compiled for earlier cases counts against a limit
    inputs = Inputs(case, device)
    replays: dict[str, dict[str, Replay]] = {name: {} for name in UNITS}
    notes: dict[str, dict[str, Any]] = {}
    for peer in case.peers:
        note = notes[peer] = {}
        try:
            run = build(peer, inputs)
            note["errors"] = errors(run, inputs)
            check_errors(note["errors"], case.dtype)
            for name, each in passes(run, inputs).items():
                replays[name][peer] = clock.prepare(each)
                note[name] = {"peak_bytes": clock.peak(each)}
        except Exception as error:  # whatever a peer throws is its result
            note["error"] = reason(error)
            for timed in replays.values():
                timed.pop(peer, None)
    for name, units in UNITS.items():
        times = alternate(replays[name], rounds=effort.rounds, batch=effort.batch)
        must_move = units * case.unit
        row: dict[str, Any] = {"case": asdict(case), "pass": name, "bytes": must_move, "peers": {}}
        for peer, note in notes.items():
            entry = row["peers"][peer] = {key: note[key] for key in ("error", "errors") if key in note}
            if peer in times:
                median = times[peer].median
                entry |= {
                    **asdict(times[peer]),
                    "bytes_per_second": must_move / median,
                    "share_of_copy": must_move / median / bandwidth,
                    **note[name],
                }
        if "triton" in times:
            row["speedup"] = {
                peer: timing.median / times["triton"].median for peer, timing in times.items() if peer != "triton"
            }
        yield row


def targets(rows: Sequence[Mapping[str, Any]]) -> list[Target]:
    """Hold the rows against what was promised; what was not measured is left out."""
    found = []
    for row in rows:
        case, frames = row["case"], row["case"]["num_frames"]
        where = f"{case['table']}, T = {frames}, {case['heads']} x {case['dim']}, {case['dtype']}, {row['pass']}"
        main = case["table"] == "main" and row["pass"] == "forward+backward"
        if main:
            # Nothing to divide by, or nothing of ours, is a target missed.
            speedup = row.get("speedup", {}).get("sdpa", 0.0)
            found.append(Target(f"{where}: times as fast as SDPA", speedup, SPEEDUPS[frames]))
            if frames <= 32:
                share = row["peers"]["triton"].get("share_of_copy", 0.0)
                found.append(Target(f"{where}: share of copy bandwidth", share, BANDWIDTH_SHARE))
        else:
            speedup = row.get("speedup", {}).get("sdpa", 0.0)
            found.append(Target(f"{where}: no slower than SDPA", speedup, 1.0))
    return found


def describe(row: Mapping[str, Any]) -> str:
    """Return a row as a line for each peer."""
    case = row["case"]
    form = ("packed" if case["packed"] else "separate") + (", bias" if case["bias"] else "")
    lines = [
        f"{case['table']}: T={case['num_frames']} N={case['tokens']} {case['heads']}x{case['dim']} {case['dtype']}"
        f" {form}, {row['pass']}"
    ]
    for peer, entry in row["peers"].items():
        if "error" in entry:
            lines.append(f"  {peer:<14} {entry['error'].splitlines()[0][:140]}")
            continue
        ratio = row.get("speedup", {}).get(peer, 1.0)
        peak = "" if entry["peak_bytes"] is None else f"  {entry['peak_bytes'] / 2**20:8.0f} MiB"
        lines.append(
            f"  {peer:<14} {1e3 * entry['median']:9.4f} ms  {100 * entry['share_of_copy']:5.1f} % of copy"
            f"  {ratio:6.2f} x ours{peak}  error {max(entry['errors']):.1e}"
        )
    return "\n".join(lines)


def measure(
    cases: Sequence[Case],
    folder: Path | None,
    *,
    clock: Clock,
    device: str,
    effort: Effort,
    limit: float = float("inf"),
) -> int:
    """Measure, write the result as it grows, and return the exit status; begin no case after some seconds."""
    started = time.perf_counter()
    result: dict[str, Any] = {
        "benchmark": NAME,
        "command": command(NAME),
        "question": "GPU time of one layer's temporal attention against the time that its bytes need, and its peers",
        "complete": False,
        "ran_on": record(),
        "rows": [],
    }

    def save(note: str) -> None:
        write(NAME, result, folder)
        print(f"[{time.perf_counter() - started:5.0f} s] {note}", flush=True)

    rates = result["ceilings"] = ceilings(clock, device, effort)
    bandwidth = rates["copy_bytes_per_second"]
    save(f"copy {bandwidth / 1e9:.0f} GB/s, bf16 matrix product {rates['bf16_flop_per_second'] / 1e12:.0f} TFLOP/s")
    for case in cases:
        if time.perf_counter() - started > limit:
            save(f"left out, for want of time: {case}")
            continue
        for row in measure_case(case, clock, device, bandwidth=bandwidth, effort=effort):
            result["rows"].append(row)
            save(describe(row))
        if device == "cuda":
            torch.cuda.empty_cache()
        if case == cases[0]:  # early: a run may be cut short
            for name, run in {
                "host_seconds": lambda case=case: host_costs(device, dtype=case.dtype, calls=effort.calls),
                "start_up_seconds": lambda case=case: start_up(case, device),
            }.items():
                try:
                    result[name] = run()
                except Exception as error:  # the rows to come do not depend on it
                    result[name] = {"error": reason(error)}
                save(f"{name}: {json.dumps(result[name], indent=1)}")
    held = targets(result["rows"])
    complete = len(result["rows"]) == len(cases) * len(UNITS)
    met = complete and all(target.met for target in held)
    result |= {"targets": [target.entry() for target in held], "met": met, "complete": complete}
    save("\n".join(("targets:", *map(str, held))))
    return 0 if met else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tables = tuple(dict.fromkeys(case.table for case in CASES))
    parser.add_argument("--out", type=Path, help="folder of the result")
    parser.add_argument("--quick", action="store_true", help="the main case at T = 8 and 32, in few rounds")
    parser.add_argument("--tables", nargs="+", choices=tables, default=tables, help="groups of cases")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which no case is begun")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("the times are those of a GPU, and there is none")
    cases = [case for case in CASES if case.table in arguments.tables]
    if arguments.quick:
        cases = [case for case in cases if case.table == "main" and case.num_frames in (8, 32)]
    effort = Effort(rounds=4, warmup=0.5) if arguments.quick else Effort()
    return measure(cases, arguments.out, clock=GraphClock(), device="cuda", effort=effort, limit=arguments.limit)


if __name__ == "__main__":
    sys.exit(main())
