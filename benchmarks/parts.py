"""How near do the parts of a training step between its matrix products come to the time that their bytes need?

``python -m benchmarks.parts`` on a GPU; ``--tune`` times other tiles of our kernels instead, and writes nothing. Peers
are timed in turn in one run, replayed from a CUDA graph. What differs from float64 by more than rounding is not timed.
``aten`` are PyTorch's own operators, ``composed`` is a matrix product of cuBLAS and compiled pointwise kernels.
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
from aim_adapters.ops.bottleneck import tiles
from aim_adapters.ops.frozen import aten as aten_frozen
from benchmarks.harness import Target, reason, record, write
from benchmarks.temporal_attention import BACKEND, TOLERANCE, Clock, Effort, GraphClock, alternate, ceilings

NAME = "parts"
EFFORT = Effort(rounds=7, batch=2e-3, copy_bytes=(2**28, 2**30, 2**32))
SHARES = {
    **dict.fromkeys(("layer_norm", "layer_norm_backward", "activation", "activation_backward"), 0.85),
    "up_add": 0.75,
    "down_backward": 0.6,
}


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
    other: bool = False
    factor: bool = False
    compiled: bool = True

    @property
    def bytes(self) -> int:
        """What has to be read and written, parameters aside."""
        size, stream, low = SIZES[self.size], *(getattr(torch, each).itemsize for each in (self.stream, self.low))
        by_token = {
            "layer_norm": size.dim * (stream + low),
            "layer_norm_backward": size.dim * (low + 3 * stream),
            "activation": size.inner * 2 * low,
            "activation_backward": size.inner * 3 * low,
            "up_add": size.dim * (2 * stream + self.other * low) + size.width * low,
            "down_backward": size.dim * stream + size.width * 3 * low,
        }
        return size.rows * by_token[self.part]


def cases() -> list[Case]:
    """Return everything that is measured; compiling takes longest, so the larger size goes without."""
    found = []
    for size in SIZES:
        compiled = size == "ViT-B"
        for stream in ("bfloat16", "float32"):
            found += [
                Case("layer_norm", size, stream, compiled=compiled),
                Case("layer_norm_backward", size, stream, compiled=compiled),
                Case("up_add", size, stream, compiled=compiled),
                Case("up_add", size, stream, other=True, factor=True, compiled=compiled),
                Case("down_backward", size, stream, factor=True, compiled=compiled),
            ]
        for kind in ("gelu", "quick_gelu"):
            for part in ("activation", "activation_backward"):
                found.append(Case(part, size, kind=kind, compiled=compiled and kind == "gelu"))
    return found


class Inputs(SimpleNamespace):
    """Tensors of a case."""

    @classmethod
    def of(cls, case: Case, device: str) -> Inputs:
        """Draw the same tensors each time."""
        size, stream, low = SIZES[case.size], getattr(torch, case.stream), getattr(torch, case.low)
        generator = torch.Generator(device).manual_seed(0)
        normal = partial(torch.randn, generator=generator, device=device)
        tokens, wide, narrow = (size.rows, size.dim), (size.rows, size.inner), (size.rows, size.width)
        drawn: dict[str, Tensor | None] = {}
        if case.part.startswith("layer_norm"):
            drawn["weight"], drawn["bias"] = normal(size.dim).to(low), normal(size.dim).to(low)
            drawn["x"] = normal(tokens, dtype=stream)
        if case.part == "layer_norm_backward":
            drawn["d_h"], drawn["d_residual"] = normal(tokens, dtype=low), normal(tokens, dtype=stream)
        if case.part.startswith("activation"):
            drawn["pre"], drawn["d_act"] = normal(wide, dtype=low), normal(wide, dtype=low)
        if case.part in ("up_add", "down_backward"):
            drawn["pre"] = normal(narrow, dtype=low)
            drawn["up_weight"] = (normal(size.dim, size.width) / size.width**0.5).to(low)
            drawn["up_bias"], drawn["residual"] = normal(size.dim).to(low), normal(tokens, dtype=stream)
            drawn["other"] = normal(tokens, dtype=low) if case.other else None
            drawn["factor"] = torch.rand(size.clips, generator=generator, device=device) if case.factor else None
        return cls(**drawn, case=case, rows=size.rows // size.clips)

    def double(self) -> Inputs:
        """Return the same in float64."""
        wide = {key: x.double() if isinstance(x, Tensor) else x for key, x in vars(self).items()}
        return Inputs(**wide)


# Peers


def run(ops: Any, x: Inputs) -> tuple[Tensor, ...]:
    """Compute a part by the functions of an implementation."""
    part, dtype = x.case.part, getattr(torch, x.case.low)
    if part == "layer_norm":
        dtype = torch.float64 if x.x.dtype == torch.float64 else dtype
        return (ops.layer_norm(x.x, x.weight, x.bias, 1e-5, dtype),)
    if part == "layer_norm_backward":
        return (ops.layer_norm_backward(x.d_h, x.x, x.weight, 1e-5, x.d_residual),)
    if part == "activation":
        return (ops.activation(x.pre, x.case.kind),)
    if part == "activation_backward":
        return (ops.activation_backward(x.d_act, x.pre, x.case.kind),)
    if part == "up_add":
        return (ops.up_add(x.pre, x.up_weight, x.up_bias, x.residual, x.other, x.factor, x.rows, 0.5),)
    outputs: tuple[Tensor, ...] = ops.down_backward(x.residual, x.up_weight, x.pre, x.factor, x.rows, 0.5)
    return outputs


def implementation(name: str) -> Any:
    """Return the functions of an implementation."""
    if name == "aten":
        return SimpleNamespace(**{**vars(aten_frozen), **vars(aten_bottleneck)})
    from aim_adapters.ops.bottleneck import triton as triton_bottleneck  # needs Triton
    from aim_adapters.ops.frozen import triton as triton_frozen

    return SimpleNamespace(**{**vars(triton_frozen), **vars(triton_bottleneck)})


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function for the shapes it is first called with."""
    return torch.compile(lambda *arguments: function(*arguments), backend=BACKEND, dynamic=False, fullgraph=True)


def composed(x: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """Return an adapter's part as a product of cuBLAS between compiled pointwise kernels."""
    f = 0.5 if x.factor is None else 0.5 * x.factor.repeat_interleave(x.rows)[:, None]
    gelu = compiled(F.gelu)

    def add(residual: Tensor, other: Tensor | None, branch: Tensor) -> Tensor:
        out = residual.float() + branch.float() * f
        return (out if other is None else out + other.float()).to(residual.dtype)

    def back(d_hidden: Tensor, pre: Tensor, d_out: Tensor) -> tuple[Tensor, ...]:
        wide = pre.float()
        d_pre = torch.ops.aten.gelu_backward(d_hidden.float() * f, wide)
        return d_pre.to(pre.dtype), (F.gelu(wide) * f).to(pre.dtype), (d_out.float() * f).sum(0), d_pre.sum(0)

    if x.case.part == "up_add":
        add = compiled(add)
        return lambda: (add(x.residual, x.other, F.linear(gelu(x.pre), x.up_weight, x.up_bias)),)
    back = compiled(back)
    return lambda: back(x.residual.to(x.pre.dtype) @ x.up_weight, x.pre, x.residual)


def peers(case: Case) -> tuple[str, ...]:
    """Name what is timed."""
    names = ("triton", "aten", "aten compiled") if case.compiled else ("triton", "aten")
    return (*names, "composed") if case.compiled and case.part in ("up_add", "down_backward") else names


def build(peer: str, x: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """Return what computes a part of some inputs."""
    if peer == "composed":
        return composed(x)
    each = partial(run, implementation(peer.removesuffix(" compiled")), x)
    return compiled(each) if peer.endswith("compiled") else each


def errors(got: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """Return relative errors, in the norm."""
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True)]


def measure_case(case: Case, clock: Clock, device: str, *, bandwidth: float, effort: Effort) -> dict[str, Any]:
    """Return the times of every peer, held against the bytes."""
    torch.compiler.reset()  # else what was compiled for earlier cases counts against a limit
    exact = run(implementation("aten"), Inputs.of(case, device).double())
    replays: dict[str, Callable[[int], float]] = {}
    row: dict[str, Any] = {"case": asdict(case), "bytes": case.bytes, "peers": {}}
    for peer in peers(case):
        entry = row["peers"][peer] = {}
        try:
            each = build(peer, Inputs.of(case, device))
            with torch.no_grad():
                entry["errors"] = errors(each(), exact)
                if not max(entry["errors"]) <= TOLERANCE[case.low]:
                    raise ArithmeticError(f"relative errors against float64 are {entry['errors']}")
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
    flags = [name for name in ("other", "factor") if case[name]]
    flags += [case["kind"]] if case["part"].startswith("activation") else [f"stream {case['stream']}"]
    lines = [f"{case['size']} {case['part']}, {', '.join(flags)}: {row['bytes'] / 1e6:.0f} MB"]
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
        "command": f"python -m benchmarks.{NAME}",
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
    result |= {"targets": [{**asdict(each), "met": each.met} for each in held], "met": met, "complete": True}
    write(NAME, result, folder)
    print("\n".join(("targets:", *map(str, held))))
    return 0 if met else 1


# Tiles that may be worth a try; those in use are in the library.
ROWS_WARPS = ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (4, 2), (1, 4), (2, 4), (4, 4), (8, 4), (4, 8))
BLOCK_WARPS = (
    (256, 1),
    (512, 1),
    (512, 2),
    (1024, 2),
    (1024, 4),
    (2048, 4),
    (2048, 8),
    (4096, 4),
    (4096, 8),
    (8192, 8),
)
ROWS_COLUMNS_WARPS_STAGES = {
    "up_add": (
        *((128, 32, 8, stages) for stages in (1, 2, 3)),
        *((128, 64, 8, stages) for stages in (1, 2)),
        *((64, 32, 4, stages) for stages in (1, 2, 3)),
        *((64, 64, 4, stages) for stages in (1, 2, 3)),
        (128, 16, 8, 2),
        (128, 128, 8, 2),
        (256, 32, 16, 2),
    ),
    "down_backward": (
        *((128, 64, 8, stages) for stages in (2, 3, 4)),
        *((128, 32, 8, stages) for stages in (2, 3, 4, 5)),
        *((64, 64, 4, stages) for stages in (2, 3, 4)),
        *((64, 32, 4, stages) for stages in (3, 4, 5)),
        (64, 64, 8, 3),
        (128, 64, 16, 3),
        (128, 128, 8, 2),
    ),
}


def tried(case: Case) -> Iterator[tuple[str, AbstractContextManager[Any]]]:
    """Yield the tiles of a part, and what puts each in use."""
    from aim_adapters.ops.frozen import triton as frozen

    yield "in use", nullcontext()
    if case.part.startswith("layer_norm"):
        for tile in ROWS_WARPS:
            yield f"(rows, warps) = {tile}", mock.patch.object(frozen, "tile", lambda _, t=tile: t)
    elif case.part.startswith("activation"):
        for block, warps in BLOCK_WARPS:
            used = mock.patch.multiple(frozen, BLOCK=block, BLOCK_WARPS=warps)
            yield f"(elements, warps) = {(block, warps)}", used
    else:
        in_use = getattr(tiles, case.part)(SIZES[case.size].width, 2, 2**20)
        for rows, columns, warps, stages in ROWS_COLUMNS_WARPS_STAGES[case.part]:
            other = in_use._replace(rows=rows, columns=columns, warps=warps, stages=stages)
            yield f"{tuple(other)}", mock.patch.object(tiles, case.part, lambda *_, t=other: t)


def tune(case: Case, clock: Clock, device: str, *, effort: Effort = EFFORT) -> dict[str, float]:
    """Return the seconds of each tile that a part could be cut by."""
    x = Inputs.of(case, device)
    exact = run(implementation("aten"), x.double())
    replays = {}
    for name, used in tried(case):
        with used:
            try:
                worst = max(errors(run(implementation("triton"), Inputs.of(case, device)), exact))
                if not worst <= TOLERANCE[case.low]:
                    raise ArithmeticError(f"relative error against float64 is {worst}")
                replays[name] = clock.prepare(partial(run, implementation("triton"), x))
            except Exception as error:  # a tile that does not fit is one not to choose
                print(f"  {name}: {reason(error)[:140]}")
    timings = alternate(replays, rounds=effort.rounds, batch=effort.batch)
    return {name: timing.median for name, timing in sorted(timings.items(), key=lambda item: item[1].median)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = cases()
    names = tuple(dict.fromkeys(case.part for case in every))
    parser.add_argument("--out", type=Path, help="folder of the result")
    parser.add_argument("--tune", action="store_true", help="time other tiles of our kernels")
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("needs a GPU")
    wanted = [case for case in every if case.part in arguments.parts]
    if not arguments.tune:
        return measure(wanted, arguments.out, clock=GraphClock(), device="cuda")
    for case in wanted:
        seconds = tune(case, GraphClock(), "cuda")
        print(case)
        print("\n".join(f"  {1e6 * each:8.1f} us  {name}" for name, each in seconds.items()), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
