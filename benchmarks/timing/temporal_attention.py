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
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aim_adapters.ops.temporal_attention import temporal_attention, temporal_attention_packed
from benchmarks.harness.results import ROOT, Target, Timing, reason, record, write

NAME = "temporal_attention"
UNITS = {"forward": 4, "forward+backward": 11}
# Relative error, in the norm, above which a peer computes something else.
TOLERANCE = {"bfloat16": 2e-2, "float16": 4e-3, "float32": 1e-3}
SPEEDUPS = {8: 18.0, 16: 12.0, 32: 9.0, 64: 1.0, 128: 1.0}
BANDWIDTH_SHARE = 0.8
EVERY_PEER = ("triton", "sdpa", "sdpa compiled", "eager", "flex")
OURS_AND_SDPA = ("triton", "sdpa")
BACKEND = "inductor"
FLEX_BLOCK = 128


@dataclass(frozen=True)
class Case:
    """What is computed: one layer's temporal attention."""

    table: str
    num_frames: int
    tokens: int = 197
    heads: int = 12
    dim: int = 64
    dtype: str = "bfloat16"
    packed: bool = True
    bias: bool = False
    peers: tuple[str, ...] = EVERY_PEER
    images: int = 256

    @property
    def frames(self) -> int:
        """B*T: the frames of as many whole clips as fit."""
        return self.images // self.num_frames * self.num_frames

    @property
    def unit(self) -> int:
        """Bytes of the queries."""
        return self.frames * self.tokens * self.heads * self.dim * getattr(torch, self.dtype).itemsize


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


class Inputs:
    """Tensors of a case: the leaves that gradients are taken of, and the output's gradient."""

    def __init__(self, case: Case, device: str) -> None:
        self.case = case
        generator = torch.Generator(device).manual_seed(0)
        normal = partial(torch.randn, generator=generator, device=device, dtype=getattr(torch, case.dtype))
        shape = (case.frames, case.tokens, case.heads, case.dim)
        if case.packed:
            self.projections = [normal(*shape[:2], 3, *shape[2:])]  # [B*T, N, 3, H, d]
        else:
            self.projections = [normal(shape) for _ in range(3)]
        # A parameter, which stays float32.
        bias = partial(torch.randn, generator=generator, device=device)
        self.bias = bias(case.heads, case.num_frames, case.num_frames) if case.bias else None
        self.d_out = normal(shape)
        for leaf in self.leaves:
            leaf.requires_grad_()

    @property
    def leaves(self) -> list[Tensor]:
        """Every tensor that gets a gradient."""
        return self.projections if self.bias is None else [*self.projections, self.bias]

    @property
    def qkv(self) -> Sequence[Tensor]:
        """Queries, keys and values ``[B*T, N, H, d]``."""
        return self.projections[0].unbind(2) if self.case.packed else self.projections

    @cached_property
    def reference(self) -> list[Tensor]:
        """Output and gradients in float64."""
        exact = Inputs.__new__(Inputs)
        exact.case = self.case
        exact.projections = [leaf.detach().double().requires_grad_() for leaf in self.projections]
        exact.bias = None if self.bias is None else self.bias.detach().double().requires_grad_()
        exact.d_out = self.d_out.double()
        out = by_name("eager", exact)
        return [out.detach(), *torch.autograd.grad(out, exact.leaves, exact.d_out)]


# Peers: each computes the output of some inputs.


def by_name(implementation: str, inputs: Inputs) -> Tensor:
    """Attend by one of the library's implementations; only ours takes the packed projection as it is."""
    call = partial(
        temporal_attention_packed if inputs.case.packed and implementation == "triton" else temporal_attention,
        num_frames=inputs.case.num_frames,
        bias=inputs.bias,
        implementation=implementation,
    )
    if call.func is temporal_attention_packed:
        return call(inputs.projections[0])
    return call(*inputs.qkv)


def flex(inputs: Inputs, mask: Any) -> Tensor:
    """Attend by FlexAttention: all sequences of a head behind one another, under a block-diagonal mask."""
    from torch.nn.attention.flex_attention import flex_attention

    case, bias = inputs.case, inputs.bias
    frames, tokens = case.num_frames, case.tokens

    def add_bias(score: Tensor, _: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return score + bias[head, row % frames, column % frames]

    def sequences(x: Tensor) -> Tensor:
        x = x.unflatten(0, (-1, frames)).permute(3, 0, 2, 1, 4)  # [H, B, N, T, d]
        return x.flatten(1, 3).unsqueeze(0)  # [1, H, B*N*T, d]

    score_mod = None if bias is None else add_bias
    out = flex_attention(*map(sequences, inputs.qkv), score_mod=score_mod, block_mask=mask)
    return out[0].unflatten(1, (-1, tokens, frames)).permute(1, 3, 2, 0, 4).flatten(0, 1)  # [B*T, N, H, d]


def flex_mask(case: Case, device: str) -> Any:
    """Return the mask that lets a row see its own sequence only, block by block on the diagonal."""
    from torch.nn.attention.flex_attention import BlockMask

    if FLEX_BLOCK % case.num_frames:
        raise ValueError(f"sequences of {case.num_frames} frames straddle FlexAttention's blocks of {FLEX_BLOCK}")
    rows = case.frames * case.tokens
    blocks = -(-rows // FLEX_BLOCK)
    indices = torch.zeros(1, 1, blocks, blocks, dtype=torch.int32, device=device)
    indices[..., 0] = torch.arange(blocks, device=device)

    def own_sequence(_: Tensor, __: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return row // case.num_frames == column // case.num_frames

    counts = torch.ones(1, 1, blocks, dtype=torch.int32, device=device)
    return BlockMask.from_kv_blocks(
        counts, indices, BLOCK_SIZE=FLEX_BLOCK, mask_mod=own_sequence, seq_lengths=(rows, rows)
    )


def build(peer: str, inputs: Inputs) -> Callable[[], Tensor]:
    """Return what computes the output of the inputs, as one of the peers."""
    if peer == "flex":
        run = partial(flex, inputs, flex_mask(inputs.case, inputs.d_out.device.type))
    else:
        run = partial(by_name, peer.removesuffix(" compiled"), inputs)
    compiled = peer == "flex" or peer.endswith(" compiled")
    # The wrapper is new each time: a compiler keeps its work by function.
    return torch.compile(lambda: run(), backend=BACKEND, dynamic=False, fullgraph=True) if compiled else run


def passes(run: Callable[[], Tensor], inputs: Inputs) -> dict[str, Callable[[], Any]]:
    """Return the passes to time, by name."""
    return {
        "forward": torch.no_grad()(run),
        "forward+backward": lambda: torch.autograd.grad(run(), inputs.leaves, inputs.d_out),
    }


def errors(run: Callable[[], Tensor], inputs: Inputs) -> list[float]:
    """Return the relative error of output and gradients."""
    out = run()
    got = [out.detach(), *torch.autograd.grad(out, inputs.leaves, inputs.d_out)]
    return [float((x.double() - exact).norm() / exact.norm()) for x, exact in zip(got, inputs.reference, strict=True)]


# Clocks: `prepare` returns what runs something n times and says how many seconds one took.


class GraphClock:
    """Time kernels alone, on a GPU: the work is captured once and replayed."""

    def prepare(self, run: Callable[[], Any]) -> Callable[[int], float]:
        """Capture a CUDA graph."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()

        def replay(repeats: int) -> float:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(repeats):
                graph.replay()
            end.record()
            end.synchronize()
            return 1e-3 * start.elapsed_time(end) / repeats

        replay(1)
        return replay

    def peak(self, run: Callable[[], Any]) -> int:
        """Return the bytes that were allocated at most beyond what was there before."""
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = run()
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before


class WallClock:
    """Time everything, on a CPU."""

    def prepare(self, run: Callable[[], Any]) -> Callable[[int], float]:
        """Run once."""
        run()

        def repeat(repeats: int) -> float:
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            return (time.perf_counter() - start) / repeats

        return repeat

    def peak(self, run: Callable[[], Any]) -> None:
        """Return nothing: a CPU's memory is not counted."""


Clock = GraphClock | WallClock


def alternate(replays: Mapping[str, Callable[[int], float]], *, rounds: int, batch: float) -> dict[str, Timing]:
    """Time several peers in turn, in batches of some seconds, so that drift of the clocks meets all alike."""
    repeats = {name: max(1, round(batch / max(replay(2), 1e-7))) for name, replay in replays.items()}
    seconds: dict[str, list[float]] = {name: [] for name in replays}
    for number in range(rounds + 1):
        for name, replay in replays.items():
            took = replay(repeats[name])
            if number:  # the first round warms up
                seconds[name].append(took)
    return {name: Timing.of(times) for name, times in seconds.items()}


# What is measured


@dataclass(frozen=True)
class Effort:
    """How large and how long everything is."""

    rounds: int = 10
    batch: float = 5e-3
    calls: int = 200
    copy_bytes: tuple[int, ...] = (2**28, 2**30, 2**32)
    side: int = 8192
    warmup: float = 1.5


def ceilings(clock: Clock, device: str, effort: Effort) -> dict[str, float]:
    """Return the bandwidth of the fastest copy, in bytes per second, and the rate of a matrix product, in FLOP."""
    a, b = (torch.randn(effort.side, effort.side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = clock.prepare(lambda: a @ b)
    until, rates = time.perf_counter() + effort.warmup, []
    while not rates or time.perf_counter() < until:  # clocks rise only under load
        rates.append(2 * effort.side**3 / product(10))
    bandwidths = []
    for size in effort.copy_bytes:
        source = torch.zeros(size // 2, device=device, dtype=torch.bfloat16)
        target = torch.empty_like(source)
        for copy in (partial(target.copy_, source), partial(torch.neg, source, out=target)):
            replay = clock.prepare(copy)
            bandwidths += [2 * size / replay(5) for _ in range(20)]
    return {"copy_bytes_per_second": max(bandwidths), "bf16_flop_per_second": max(rates)}


def measure_case(
    case: Case, clock: Clock, device: str, *, bandwidth: float, effort: Effort
) -> Iterator[dict[str, Any]]:
    """Yield a row for each pass of a case: the times of every peer, held against the bytes and against SDPA."""
    torch.compiler.reset()  # else what was compiled for earlier cases counts against a limit
    inputs = Inputs(case, device)
    replays: dict[str, dict[str, Callable[[int], float]]] = {name: {} for name in UNITS}
    notes: dict[str, dict[str, Any]] = {}
    for peer in case.peers:
        note = notes[peer] = {}
        try:
            run = build(peer, inputs)
            note["errors"] = errors(run, inputs)
            if not max(note["errors"]) <= TOLERANCE[case.dtype]:
                raise ArithmeticError(f"relative errors against float64 are {note['errors']}")
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
                costs[f"{peer}, {form}, {name}"] = _enqueue(call, calls, repeats).median
    return costs


def _enqueue(call: Callable[[], Any], calls: int, repeats: int) -> Timing:
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    seconds = []
    for _ in range(repeats + 1):
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        seconds.append((time.perf_counter() - start) / calls)
        wait()
    return Timing.of(seconds[1:])


def first_calls(case: Case, device: str) -> list[float]:
    """Return the seconds of the first and the second forward and backward pass of this process."""
    inputs = Inputs(case, device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    call = passes(build("triton", inputs), inputs)["forward+backward"]
    seconds = []
    for _ in range(2):
        wait()
        start = time.perf_counter()
        call()
        wait()
        seconds.append(time.perf_counter() - start)
    return seconds


def start_up(case: Case, device: str) -> dict[str, list[float]]:
    """Return `first_calls` of a process that finds an empty cache of kernels, and of the next one."""
    command = [sys.executable, "-m", f"benchmarks.timing.{NAME}", "--first-calls", json.dumps(asdict(case)), device]
    seconds = {}
    with tempfile.TemporaryDirectory() as cache:
        for process in ("empty cache", "filled cache"):
            environment = {**os.environ, "TRITON_CACHE_DIR": cache}
            done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            seconds[process] = json.loads(done.stdout.splitlines()[-1])
    return seconds


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
        "command": f"python -m benchmarks.timing.{NAME}",
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
    parser.add_argument("--first-calls", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.first_calls:
        case, device = arguments.first_calls
        print(json.dumps(first_calls(Case(**json.loads(case)), device)))
        return 0
    if not torch.cuda.is_available():
        parser.error("the times are those of a GPU, and there is none")
    cases = [case for case in CASES if case.table in arguments.tables]
    if arguments.quick:
        cases = [case for case in cases if case.table == "main" and case.num_frames in (8, 32)]
    effort = Effort(rounds=4, warmup=0.5) if arguments.quick else Effort()
    return measure(cases, arguments.out, clock=GraphClock(), device="cuda", effort=effort, limit=arguments.limit)


if __name__ == "__main__":
    sys.exit(main())
