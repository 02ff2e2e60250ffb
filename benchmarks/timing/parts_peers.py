"""The parts of a step between its matrix products, as each peer computes them, and what they are computed of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_adapters.ops.bottleneck import aten as aten_bottleneck
from aim_adapters.ops.bottleneck import padded
from aim_adapters.ops.frozen import aten as aten_frozen
from benchmarks.harness import relative_error

BACKEND = "inductor"
SCALE = 0.5
ADAPTER = "gelu"  # its activation
OF_TOKENS = ("layer_norm", "add_layer_norm", "layer_norm_backward", "add")
OF_ACTIVATIONS = ("activation", "activation_backward")
OF_ADAPTERS = ("hidden", "hidden_backward")
PARTS = (*OF_TOKENS, *OF_ACTIVATIONS, *OF_ADAPTERS)


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
        ops.hidden(x.pre, x.out, x.factor, x.rows, SCALE, ADAPTER)
        return (x.out,)
    sums = ops.hidden_backward(x.d_hidden, x.pre, x.out, x.factor, x.rows, SCALE, ADAPTER)
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


def _hidden(pre: Tensor, out: Tensor, factor: Tensor | None, rows: int, scale: float, activation: str) -> None:
    f = _of_rows(pre, factor, rows, scale)
    zeros = f.new_zeros(len(pre), out.shape[1] - pre.shape[1] - 1)
    out.copy_(torch.cat((F.gelu(pre.float()) * f, f, zeros), 1))


def _hidden_backward(
    d_hidden: Tensor, pre: Tensor, out: Tensor, factor: Tensor | None, rows: int, scale: float, activation: str
) -> Tensor:
    d_pre = torch.ops.aten.gelu_backward(d_hidden.float() * _of_rows(pre, factor, rows, scale), pre.float())
    d_hidden.copy_(d_pre)
    _hidden(pre, out, factor, rows, scale, activation)
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
