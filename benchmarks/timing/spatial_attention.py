"""How fast is spatial attention on a packed projection, against SDPA's kernels?

``python -m benchmarks.timing.spatial_attention`` on a GPU; ``--tune`` times every alternative of the table of tiles
instead. Each peer takes the packed projection and, backward, returns its packed gradient: what stacks dq, dk and dv is
counted. Peers are timed in turn in one run, each forward (and backward) pass replayed from a CUDA graph, so that
kernels alone count. What differs from float64 by more than rounding is not timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from aim_adapters.ops.spatial_attention import spatial_attention
from aim_adapters.ops.spatial_attention.tiles import alternatives
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
    relative_error,
    write,
)

NAME = "spatial_attention"
# In bytes of the queries: the forward pass reads three and writes one; the backward pass reads five and writes three.
UNITS = {"forward": 4, "forward+backward": 12}
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
PEERS = ("triton", "flash", "cudnn", "efficient")
# Frames that are checked against float64, which takes room.
CHECKED = 16


@dataclass(frozen=True)
class Case:
    """What is computed: one layer's spatial attention; within windows of a frame, by index, if it has any."""

    tokens: int
    frames: int = 256
    heads: int = 12
    dim: int = 64
    bias: bool = False
    windows: int = 0
    masked: bool = False
    dtype: str = "bfloat16"
    peers: tuple[str, ...] = PEERS
    target: float = 1.0

    @property
    def length(self) -> int:
        """Tokens of a frame."""
        return self.tokens * max(1, self.windows)

    @property
    def unit(self) -> int:
        """Bytes of the queries."""
        return self.frames * self.length * self.heads * self.dim * getattr(torch, self.dtype).itemsize


CASES = (
    Case(197, target=1.4),  # ViT-B/16
    Case(50, frames=1024, target=1.4),  # ViT-B/32
    Case(257, frames=128, heads=16, target=1.2),  # ViT-L/14
    Case(577, frames=64),  # ViT-B/16 at 384 pixels
    Case(257, frames=128, heads=16, dim=80),  # ViT-H/14
    Case(49, frames=128, heads=4, dim=32, bias=True, windows=64, masked=True, target=2.0),  # Swin-B, stage 1
    Case(49, frames=128, heads=16, dim=32, bias=True, windows=4, target=2.0),  # Swin-B, stage 3
    Case(197, bias=True),  # BEiT
)


class Inputs:
    """Tensors of a case."""

    def __init__(self, case: Case, device: str) -> None:
        self.case = case
        generator = torch.Generator(device).manual_seed(0)
        normal = partial(torch.randn, generator=generator, device=device, dtype=getattr(torch, case.dtype))
        square = (case.tokens, case.tokens)
        self.qkv = normal(case.frames, case.length, 3, case.heads, case.dim).requires_grad_()
        self.bias = normal(case.heads, *square, dtype=torch.float32) if case.bias else None
        self.mask = None
        if case.masked:
            self.mask = -100.0 * (normal(case.windows, *square, dtype=torch.float32) > 0.5)
        self.index = None
        if case.windows:  # a frame is cut into them in bands
            order = torch.arange(case.length, device=device, dtype=torch.int32)
            self.index = order.view(-1, case.windows).T.contiguous()
        self.d_out = normal(case.frames, case.length, case.heads, case.dim)

    def reference(self) -> list[Tensor]:
        """Return output and gradient in float64, of the first frames."""
        frames = max(CHECKED // max(1, self.case.windows), 1)
        qkv = self.qkv.detach()[:frames].double().requires_grad_()
        out = spatial_attention(qkv, bias=self.bias, mask=self.mask, index=self.index, implementation="eager")
        return [out.detach(), *torch.autograd.grad(out, qkv, self.d_out[:frames].double())]


def build(peer: str, inputs: Inputs) -> Callable[[], Tensor]:
    """Return what computes the output of the inputs, as one of the peers."""
    given = {"bias": inputs.bias, "mask": inputs.mask, "index": inputs.index}

    def run() -> Tensor:
        with sdpa_kernel(BACKENDS[peer]) if peer in BACKENDS else nullcontext():
            name = "sdpa" if peer in BACKENDS else peer
            return spatial_attention(inputs.qkv, **given, implementation=name)

    return run


def passes(run: Callable[[], Tensor], inputs: Inputs) -> dict[str, Callable[[], Any]]:
    """Return the passes to time, by name."""
    return {
        "forward": torch.no_grad()(run),
        "forward+backward": lambda: torch.autograd.grad(run(), inputs.qkv, inputs.d_out),
    }


def check(got: Sequence[Tensor], exact: Sequence[Tensor], dtype: str) -> list[float]:
    """Return relative errors of output and gradient.

    Raises:
        ArithmeticError: One is more than rounding.
    """
    errors = [relative_error(x.detach()[: true.shape[0]], true) for x, true in zip(got, exact, strict=True)]
    check_errors(errors, dtype)
    return errors


def measure_case(
    case: Case, clock: Clock, device: str, *, bandwidth: float, effort: Effort
) -> Iterator[dict[str, Any]]:
    """Yield a row for each pass of a case: the times of every peer."""
    inputs = Inputs(case, device)
    exact = inputs.reference()
    replays: dict[str, dict[str, Replay]] = {name: {} for name in UNITS}
    notes: dict[str, dict[str, Any]] = {}
    for peer in case.peers:
        note = notes[peer] = {}
        try:
            run = build(peer, inputs)
            out = run()
            note["errors"] = check([out, *torch.autograd.grad(out, inputs.qkv, inputs.d_out)], exact, case.dtype)
            for name, each in passes(run, inputs).items():
                replays[name][peer] = clock.prepare(each)
        except Exception as error:  # whatever a peer throws is its result
            note["error"] = reason(error)
            for timed in replays.values():
                timed.pop(peer, None)
    for name, units in UNITS.items():
        times = alternate(replays[name], rounds=effort.rounds, batch=effort.batch)
        row: dict[str, Any] = {"case": asdict(case), "pass": name, "bytes": units * case.unit, "peers": {}}
        for peer, note in notes.items():
            row["peers"][peer] = dict(note)
            if peer in times:
                share = row["bytes"] / times[peer].median / bandwidth
                row["peers"][peer] |= {**asdict(times[peer]), "share_of_copy": share}
        others = [timing.median for peer, timing in times.items() if peer != "triton"]
        if "triton" in times and others:
            row["speedup"] = min(others) / times["triton"].median
        yield row


def tune_case(case: Case, clock: Clock, device: str, *, effort: Effort) -> Iterator[dict[str, Any]]:
    """Yield a row for each pass of a case, forward and backward apart: the times of every alternative."""
    from aim_adapters.ops.spatial_attention import triton

    inputs = Inputs(case, device)
    given = (case.dim**-0.5, inputs.bias, inputs.mask)
    exact, qkv = inputs.reference(), inputs.qkv.detach()
    o, lse = triton.forward(qkv, *given, index=inputs.index)
    for index, backward in enumerate((False, True)):
        row: dict[str, Any] = {"case": asdict(case), "pass": ("forward", "backward")[index], "peers": {}}
        replays = {}
        for tiles in alternatives(case.tokens, case.dim, added=case.bias or case.masked, backward=backward):
            if backward:
                run = partial(triton.backward, inputs.d_out, qkv, o, lse, *given, index=inputs.index, tiles=tiles)
            else:
                run = partial(triton.forward, qkv, *given, index=inputs.index, tiles=tiles)
            name = " ".join(map(str, tiles))
            try:
                got = run() if backward else run()[0]
                row["peers"][name] = {"errors": check([got], exact[index : index + 1], case.dtype)}
                replays[name] = clock.prepare(run)
            except Exception as error:  # too large for this device, for one
                row["peers"][name] = {"error": reason(error)}
        for name, timing in alternate(replays, rounds=effort.rounds, batch=effort.batch).items():
            row["peers"][name] |= asdict(timing)
        yield row


def describe(row: dict[str, Any]) -> str:
    """Return a row as a line for each peer."""
    case = row["case"]
    windows = f" x {case['windows']} windows" if case["windows"] else ""
    added = (", bias" if case["bias"] else "") + (", mask" if case["masked"] else "")
    lines = [f"N={case['tokens']} {case['frames']}{windows} x {case['heads']} x {case['dim']}{added}, {row['pass']}"]
    for peer, entry in row["peers"].items():
        if "error" in entry:
            lines.append(f"  {peer:<26} {entry['error'][:160]}")
            continue
        share = f"  {100 * entry['share_of_copy']:5.1f} % of copy" if "share_of_copy" in entry else ""
        lines.append(f"  {peer:<26} {1e3 * entry['median']:8.4f} ms{share}  error {max(entry['errors']):.1e}")
    if "speedup" in row:
        lines.append(f"  the fastest peer takes {row['speedup']:.2f} times as long")
    return "\n".join(lines)


def targets(rows: Sequence[dict[str, Any]]) -> list[Target]:
    """Hold training passes against the fastest peer."""
    return [
        Target(
            f"N={row['case']['tokens']}, {row['case']['heads']} x {row['case']['dim']}: times as fast as the best peer",
            row.get("speedup", 0.0),
            row["case"]["target"],
        )
        for row in rows
        if row["pass"] == "forward+backward"
    ]


def measure(cases: Sequence[Case], folder: Path | None, *, clock: Clock, device: str, effort: Effort) -> int:
    """Measure, write the result as it grows, and return the exit status."""
    result: dict[str, Any] = {
        "benchmark": NAME,
        "command": command(NAME),
        "question": "GPU time of one layer's spatial attention on a packed projection, against SDPA's kernels",
        "ran_on": record(),
        "ceilings": ceilings(clock, device, effort),
        "rows": [],
    }
    for case in cases:
        bandwidth = result["ceilings"]["copy_bytes_per_second"]
        for row in measure_case(case, clock, device, bandwidth=bandwidth, effort=effort):
            result["rows"].append(row)
            write(NAME, result, folder)
            print(describe(row), flush=True)
    held = targets(result["rows"])
    result["targets"] = [target.entry() for target in held]
    result["met"] = all(target.met for target in held)
    write(NAME, result, folder)
    print(*held, sep="\n")
    return 0 if result["met"] else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the result")
    parser.add_argument("--tune", action="store_true", help="time every alternative of the table, and write nothing")
    parser.add_argument("--tokens", type=int, nargs="+", help="sequence lengths of the cases; all if left out")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("the times are those of a GPU, and there is none")
    cases = [case for case in CASES if arguments.tokens is None or case.tokens in arguments.tokens]
    effort = Effort(rounds=5, warmup=0.5, copy_bytes=(2**30,))
    if not arguments.tune:
        return measure(cases, arguments.out, clock=GraphClock(), device="cuda", effort=effort)
    for case in cases:
        for row in tune_case(case, GraphClock(), "cuda", effort=effort):
            print(describe(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
