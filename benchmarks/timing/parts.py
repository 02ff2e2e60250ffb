"""How near do the parts of a training step between its matrix products come to the time that their bytes need?

``python -m benchmarks.timing.parts`` on a GPU; ``--tune`` times other tiles of our kernels instead, and writes nothing.
Peers are timed in turn in one run, replayed from a CUDA graph. What differs from float64 by more than rounding is not
timed. ``aten`` are PyTorch's own operators, ``compiled`` is what a compiler makes of the plain formulas. An MLP's
activation and an adapter's hidden layer are columns of one tensor, as they are where the adapter is beside the MLP.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_adapters.ops.bottleneck import aten as aten_bottleneck
from aim_adapters.ops.bottleneck import padded
from aim_adapters.ops.frozen import aten as aten_frozen
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

NAME = "parts"
BACKEND = "inductor"
EFFORT = Effort(rounds=7, batch=2e-3, copy_bytes=(2**28, 2**30, 2**32), warmup=0.5)
SCALE = 0.5
OF_TOKENS = ("layer_norm", "add_layer_norm", "layer_norm_backward", "add")
OF_ACTIVATIONS = ("activation", "activation_backward")
OF_ADAPTERS = ("hidden", "hidden_backward")
PARTS = (*OF_TOKENS, *OF_ACTIVATIONS, *OF_ADAPTERS)
SHARES = {**dict.fromkeys(PARTS, 0.85), **dict.fromkeys(OF_ADAPTERS, 0.6)}


@dataclass(frozen=True)
class Size:
    """Tokens of a batch, and the widths of model, adapter and MLP."""

    rows: int
    dim: int
    width: int
    inner: int
    clips: int


SIZES = {
    "ViT-B": Size(256 * 197, 768, 192, 3072, clips=32),
    "ViT-L": Size(128 * 257, 1024, 256, 4096, clips=16),
}


@dataclass(frozen=True)
class Case:
    """A part, at a size, with the residual stream in some dtype."""

    part: str
    size: str
    stream: str = "bfloat16"
    low: str = "bfloat16"
    kind: str = "gelu"
    factor: bool = False
    compiled: bool = False

    @property
    def bytes(self) -> int:
        """What has to be read and written, parameters aside."""
        size, stream, low = SIZES[self.size], *(getattr(torch, each).itemsize for each in (self.stream, self.low))
        by_token = {
            "layer_norm": size.dim * (stream + low),
            "add_layer_norm": size.dim * 2 * (stream + low),
            "layer_norm_backward": size.dim * (3 * stream + low),
            "add": size.dim * (2 * stream + low),
            "activation": size.inner * 2 * low,
            "activation_backward": size.inner * 3 * low,
            "hidden": (size.width + padded(size.width)) * low,
            "hidden_backward": (3 * size.width + padded(size.width)) * low,
        }
        return size.rows * by_token[self.part]


def cases() -> list[Case]:
    """Return everything that is measured; compiling takes longest, so only what is usual is compiled."""
    return [
        *(Case(part, "ViT-B", compiled=True) for part in PARTS),
        *(Case(part, "ViT-B", stream="float32") for part in OF_TOKENS),
        *(Case(part, "ViT-B", kind="quick_gelu") for part in OF_ACTIVATIONS),
        *(Case(part, "ViT-B", factor=True) for part in OF_ADAPTERS),
        *(Case(part, "ViT-L") for part in PARTS),
    ]


class Inputs(SimpleNamespace):
    """Tensors of a case."""

    @classmethod
    def of(cls, case: Case, device: str) -> Inputs:
        """Draw the same tensors each time."""
        size, stream, low = SIZES[case.size], getattr(torch, case.stream), getattr(torch, case.low)
        generator = torch.Generator(device).manual_seed(0)
        normal = partial(torch.randn, generator=generator, device=device)
        drawn: dict[str, Tensor | None] = {"factor": None}
        if case.part in OF_TOKENS:
            drawn |= {name: normal(size.rows, size.dim, dtype=stream) for name in ("x", "d_residual")}
            drawn |= {name: normal(size.rows, size.dim, dtype=low) for name in ("other", "d_h")}
            drawn |= {name: normal(size.dim, dtype=low) for name in ("weight", "bias")}
        else:
            first, columns = size.inner, size.inner + padded(size.width)
            pre = normal(size.rows, first + size.width, dtype=low)
            d, out = (normal(size.rows, columns, dtype=low) for _ in range(2))
            if case.part in OF_ACTIVATIONS:
                drawn |= {"pre": pre[:, :first], "d_act": d[:, :first], "out": out[:, :first]}
            else:
                drawn |= {"pre": pre[:, first:], "d_hidden": d[:, first : first + size.width], "out": out[:, first:]}
        if case.part == "hidden_backward":
            drawn["out"] = out[:, first:].contiguous()
        if case.factor:
            drawn["factor"] = torch.rand(size.clips, generator=generator, device=device)
        return cls(**drawn, case=case, rows=size.rows // size.clips)

    def double(self) -> Inputs:
        """Return the same in float64."""
        wide = {key: x.double() if isinstance(x, Tensor) else x for key, x in vars(self).items()}
        return Inputs(**wide)


# Peers


def run(ops: Any, x: Inputs) -> tuple[Tensor, ...]:
    """Compute a part by the functions of an implementation."""
    part = x.case.part
    if part == "layer_norm":
        return (ops.layer_norm(x.x, x.weight, x.bias, 1e-5, x.other.dtype),)
    if part == "add_layer_norm":
        both: tuple[Tensor, ...] = ops.add_layer_norm(x.x, x.other, x.weight, x.bias, 1e-5, x.other.dtype)
        return both
    if part == "layer_norm_backward":
        return (ops.layer_norm_backward(x.d_h, x.x, x.weight, 1e-5, x.d_residual),)
    if part == "add":
        return (ops.add(x.x, x.other),)
    if part == "activation":
        return (ops.activation(x.pre, x.case.kind, x.out),)
    if part == "activation_backward":
        return (ops.activation_backward(x.d_act, x.pre, x.case.kind),)
    if part == "hidden":
        ops.hidden(x.pre, x.out, x.factor, x.rows, SCALE)
        return (x.out,)
    sums = ops.hidden_backward(x.d_hidden, x.pre, x.out, x.factor, x.rows, SCALE)
    return x.d_hidden, x.out, sums


def implementation(name: str) -> Any:
    """Return the functions of an implementation."""
    if name == "triton":
        from aim_adapters.ops.bottleneck import triton as triton_bottleneck  # needs Triton
        from aim_adapters.ops.frozen import triton as triton_frozen

        return SimpleNamespace(**{**vars(triton_frozen), **vars(triton_bottleneck)})
    functions = {**vars(aten_frozen), **vars(aten_bottleneck)}
    plain = {"activation": _activation, "hidden": _hidden, "hidden_backward": _hidden_backward}
    return SimpleNamespace(**functions | (plain if name == "compiled" else {}))


# A compiler does not take operators that write where they are told.


def _activation(pre: Tensor, kind: str, out: Tensor) -> Tensor:
    return out.copy_(aten_frozen.activation(pre, kind))


def _hidden(pre: Tensor, out: Tensor, factor: Tensor | None, rows: int, scale: float) -> None:
    f = _of_rows(pre, factor, rows, scale)
    zeros = f.new_zeros(len(pre), out.shape[1] - pre.shape[1] - 1)
    out.copy_(torch.cat((F.gelu(pre.float()) * f, f, zeros), 1))


def _hidden_backward(
    d_hidden: Tensor, pre: Tensor, out: Tensor, factor: Tensor | None, rows: int, scale: float
) -> Tensor:
    d_pre = torch.ops.aten.gelu_backward(d_hidden.float() * _of_rows(pre, factor, rows, scale), pre.float())
    d_hidden.copy_(d_pre)
    _hidden(pre, out, factor, rows, scale)
    return d_pre.sum(0, keepdim=True)


def _of_rows(pre: Tensor, factor: Tensor | None, rows: int, scale: float) -> Tensor:
    if factor is None:
        return pre.new_full((len(pre), 1), scale, dtype=torch.float32)
    return scale * factor.repeat_interleave(rows)[:, None]


def peers(case: Case) -> tuple[str, ...]:
    """Name what is timed."""
    return ("triton", "aten", "compiled") if case.compiled else ("triton", "aten")


def build(peer: str, x: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """Return what computes a part of some inputs."""
    ops = implementation(peer)
    if peer != "compiled":
        return partial(run, ops, x)
    return torch.compile(lambda: run(ops, x), backend=BACKEND, dynamic=False, fullgraph=True)


def errors(got: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """Return relative errors, in the norm; sums of some rows each are added up."""
    return [
        relative_error(a if a.shape == b.shape else a.double().sum(0, keepdim=True), b)
        for a, b in zip(got, exact, strict=True)
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


# Tiles that may be worth a try; those in use are in the library.
ROWS_WARPS = ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (4, 2), (1, 4), (2, 4), (4, 4), (8, 4), (4, 8))
ELEMENTS_WARPS = ((1024, 2), (1024, 4), (2048, 2), (2048, 4), (2048, 8), (4096, 4), (4096, 8), (8192, 8))
TILES_STAGES = ((1, 1), (2, 1), (4, 1), (4, 2), (4, 3), (8, 1), (8, 2), (8, 3), (16, 3))


def tried(case: Case) -> Iterator[tuple[str, AbstractContextManager[Any]]]:
    """Yield the tiles of a part, and what puts each in use."""
    from aim_adapters.ops.bottleneck import triton as bottleneck
    from aim_adapters.ops.frozen import triton as frozen

    yield "in use", nullcontext()
    if case.part in OF_ADAPTERS:
        chosen = bottleneck._options
        for elements, warps in ELEMENTS_WARPS:
            for tiles, stages in TILES_STAGES if case.part == "hidden_backward" else TILES_STAGES[:1]:

                def cut(*tensors: Any, elements: int = elements, warps: int = warps) -> dict[str, Any]:
                    options = chosen(*tensors)
                    return {**options, "ROWS": max(1, elements // options["WIDTH"]), "num_warps": warps}

                used = mock.patch.multiple(bottleneck, _options=cut, _TILES=tiles, _STAGES=stages)
                yield f"(elements, warps, tiles, stages) = {(elements, warps, tiles, stages)}", used
    elif "layer_norm" in case.part:
        for tile in ROWS_WARPS:
            yield f"(rows, warps) = {tile}", mock.patch.object(frozen, "tile", lambda _, t=tile: t)
    else:
        for elements, warps in ELEMENTS_WARPS:
            used = mock.patch.multiple(frozen, ELEMENTS=elements, WARPS=warps)
            yield f"(elements, warps) = {(elements, warps)}", used


def tune(case: Case, clock: Clock, device: str, *, effort: Effort = EFFORT) -> dict[str, float]:
    """Return the seconds of each tile that a part could be cut by."""
    x = Inputs.of(case, device)
    exact = run(implementation("aten"), x.double())
    replays = {}
    for name, used in tried(case):
        with used:
            try:
                check_errors(errors(run(implementation("triton"), Inputs.of(case, device)), exact), case.low)
                replays[name] = clock.prepare(partial(run, implementation("triton"), x))
            except Exception as error:  # a tile that does not fit is one not to choose
                print(f"  {name}: {reason(error)[:140]}")
    timings = alternate(replays, rounds=effort.rounds, batch=effort.batch)
    return {name: timing.median for name, timing in sorted(timings.items(), key=lambda item: item[1].median)}


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
        seconds = tune(case, GraphClock(), "cuda")
        print(case)
        print("\n".join(f"  {1e6 * each:8.1f} us  {name}" for name, each in seconds.items()), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
