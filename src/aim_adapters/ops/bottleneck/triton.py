"""The hidden layer of an adapter by Triton kernels, for float32, bfloat16 and float16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aim_adapters.ops.bottleneck import kernels
from aim_adapters.ops.bottleneck.layer import Layer
from aim_adapters.ops.bottleneck.weights import Adapter, Composed, MlpLayers, OutputLayer, scaled_output
from aim_adapters.ops.bottleneck.width import aligned, padded
from aim_adapters.ops.frozen.triton import dense
from aim_adapters.ops.launch import cdiv, launch, next_power_of_2

_TILES, _STAGES = 8, 3  # tiles of rows of a program that adds rows up, and of how many loads are under way
_WIDEST = 2048  # adapter for which there is shared memory to load ahead, on any GPU
_COLUMNS = 1024  # of a program that puts weights together
_UNITS, _PARTS, _ROWS = 4, 512, 8  # of a program that finishes gradients


def hidden(
    pre: Tensor, out: Tensor, factor: Tensor | None, rows_per_factor: int, scale: float, activation: str
) -> None:
    """Compute `BottleneckRows.hidden` by a kernel."""
    options = _options(pre, out, factor, activation)
    launch(
        kernels.hidden_kernel,
        cdiv(len(pre), options["BLOCK_ROWS"]),
        pre,
        out,
        factor,
        len(pre),
        rows_per_factor,
        scale,
        **options,
    )


def hidden_backward(
    d_hidden: Tensor,
    pre: Tensor,
    out: Tensor | None,
    factor: Tensor | None,
    rows_per_factor: int,
    scale: float,
    activation: str,
) -> Tensor:
    """Compute `BottleneckRows.hidden_backward` by a kernel."""
    options = _options(pre, out, factor, activation)
    programs = cdiv(len(pre), options["BLOCK_ROWS"] * _TILES)
    sums = torch.empty((programs, pre.shape[1]), dtype=torch.float32, device=pre.device)
    launch(
        kernels.hidden_backward_kernel, programs,
        d_hidden, pre, out, sums, factor, len(pre), rows_per_factor, scale,
        STRIDE_D_HIDDEN_ROW=d_hidden.stride(0), HAS_OUT=out is not None, TILES=_TILES,
        NUM_STAGES=_STAGES if options["BLOCK_UNITS"] <= _WIDEST else 1, **options,
    )  # fmt: skip
    return sums


def gradients(d_down: Tensor, sums: Tensor, d_up: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `BottleneckRows.gradients` by a kernel."""
    (width, inner), (rows, columns) = d_down.shape, d_up.shape
    d_down_b = torch.empty(width, dtype=sums.dtype, device=sums.device)
    d_up_w, d_up_b = (torch.empty(shape, dtype=d_up.dtype, device=d_up.device) for shape in ((rows, width), (rows,)))
    launch(
        kernels.gradients_kernel, cdiv(width, _UNITS) + cdiv(rows, _ROWS),
        d_down, sums, d_up, None if bias is None else bias.contiguous(), d_down_b, d_up_w, d_up_b, len(sums),
        UNITS=width, COLUMNS=columns, OUT_FEATURES=rows, IN_FEATURES=inner, BLOCK_UNITS=next_power_of_2(width),
        HAS_BIAS=bias is not None, PROGRAM_UNITS=_UNITS, BLOCK_SUMS=_PARTS,
        BLOCK_COLUMNS=min(256, next_power_of_2(inner)), BLOCK_ROWS=_ROWS, num_warps=4,
        STEPS=next_power_of_2(max(1, cdiv(len(sums), _PARTS))),  # one kernel serves batches of many sizes
    )  # fmt: skip
    return d_down, d_down_b, d_up_w, d_up_b


def widened(
    weight: Tensor | None, up_weight: Tensor, up_bias: Tensor, dtype: torch.dtype, columns: int | None = None
) -> Tensor:
    """Compute `BottleneckRows.widened` by a kernel."""
    (rows, width), given = up_weight.shape, 0 if weight is None else weight.shape[1]
    own = given if columns is None else columns
    out = torch.empty((rows, own + padded(width)), dtype=dtype, device=up_weight.device)
    weight = None if weight is None else weight.contiguous()
    launch(
        kernels.widened_kernel, rows * cdiv(out.shape[1], _COLUMNS),
        weight, up_weight.contiguous(), up_bias.contiguous(), out,
        GIVEN_COLUMNS=given, OWN_COLUMNS=own, UNITS=width, COLUMNS=out.shape[1] - own, BLOCK_COLUMNS=_COLUMNS,
        num_warps=4,
    )  # fmt: skip
    return out


def joined(layers: Sequence[Layer], down: Layer | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Compute `BottleneckRows.joined` by a kernel."""
    first, second = layers[0], layers[1] if len(layers) == 2 else _NO_LAYER
    own, width = first.weight.shape
    below, units = (own if len(layers) == 1 else aligned(own)), 0 if down is None else len(down.weight)
    rows = len(layers) * below + units
    out = torch.empty((rows, width), dtype=dtype, device=first.weight.device)
    out_bias = torch.empty(rows, dtype=dtype, device=out.device)
    given = [dense(tensor) for layer in (first, second, down or _NO_LAYER) for tensor in layer]
    launch(
        kernels.joined_kernel, rows, *given, out, out_bias,
        OWN_ROWS=own, ALIGNED_ROWS=below, DOWN_ROWS=units, FEATURES=width, HAS_FIRST_BIAS=first.bias is not None,
        HAS_SECOND=len(layers) == 2, HAS_SECOND_BIAS=second[1] is not None, BLOCK_FEATURES=next_power_of_2(width),
        num_warps=4,
    )  # fmt: skip
    return out, out_bias


def output_layer(
    weight: Tensor, bias: Tensor | None, gamma: Tensor | None, adapters: Sequence[Adapter], dtype: torch.dtype
) -> OutputLayer:
    """Compute `BottleneckRows.output_layer` by a kernel and a product."""
    if not adapters:
        return OutputLayer(*scaled_output(weight, bias, gamma, dtype), [])
    (features, inner), device = weight.shape, weight.device
    widths = [len(adapter.down_bias) for adapter in adapters]
    own = [inner if adapter.beside else 0 for adapter in adapters]
    columns = [padded(width) for width in widths]
    out = [
        torch.empty((features, first + more), dtype=dtype, device=device)
        for first, more in zip(own, columns, strict=True)
    ]
    downs = torch.empty((sum(widths), features), dtype=dtype, device=device)
    biases = torch.empty(sum(widths), dtype=dtype, device=device)
    out_bias = None if bias is None else torch.empty(features, dtype=dtype, device=device)
    given: list[Tensor | None] = []
    for adapter, wide in zip(adapters, out, strict=True):
        given += [*_all_dense(adapter[:4]), wide]
    given += [None] * (10 - len(given))
    second = (own[1], widths[1], columns[1]) if len(adapters) > 1 else (0, 0, 0)
    launch(
        kernels.output_layer_kernel, features + sum(widths),
        *_all_dense((weight, bias, gamma)), *given, downs, biases, out_bias,
        FEATURES=features, OWN_1=own[0], UNITS_1=widths[0], COLUMNS_1=columns[0],
        OWN_2=second[0], UNITS_2=second[1], COLUMNS_2=second[2],
        HAS_BIAS=bias is not None, HAS_GAMMA=gamma is not None, BLOCK_COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    layer = next((wide[:, :inner] for wide, first in zip(out, own, strict=True) if first), None)
    if layer is None:
        layer, _ = scaled_output(weight, None, gamma, dtype)
    composed = downs @ layer  # [W1 + W2, K]
    pairs = zip(composed.split(widths), biases.split(widths), out, strict=True)
    return OutputLayer(layer, out_bias, [Composed(*each) for each in pairs])


def mlp_layers(
    first: Layer,
    last: Layer,
    gamma: Tensor | None,
    adapter: Adapter,
    dtype: torch.dtype,
) -> MlpLayers:
    """Compute `BottleneckRows.mlp_layers` by a kernel."""
    (hidden_units, features), device = first[0].shape, first[0].device
    width = len(adapter.down_bias)
    first_weight = torch.empty((hidden_units + width, features), dtype=dtype, device=device)
    first_bias = torch.empty(hidden_units + width, dtype=dtype, device=device)
    last_weight = torch.empty((features, hidden_units + padded(width)), dtype=dtype, device=device)
    last_bias = None if last[1] is None else torch.empty(features, dtype=dtype, device=device)
    down_weight, down_bias, up_weight, up_bias = _all_dense(adapter[:4])
    launch(
        kernels.mlp_layers_kernel, hidden_units + width + features,
        *_all_dense(first), down_weight, down_bias, first_weight, first_bias,
        *_all_dense((*last, gamma)), up_weight, up_bias, last_weight, last_bias,
        HIDDEN=hidden_units, FEATURES=features, UNITS=width, COLUMNS=padded(width),
        HAS_IN_BIAS=first[1] is not None, HAS_OUT_BIAS=last[1] is not None, HAS_GAMMA=gamma is not None,
        BLOCK_COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    return MlpLayers(first_weight, first_bias, last_weight, last_bias)


def _all_dense(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [dense(tensor) for tensor in tensors]


_NO_LAYER = (None, None)


def _options(pre: Tensor, out: Tensor | None, factor: Tensor | None, activation: str) -> dict[str, Any]:
    columns = pre.shape[1] if out is None else out.shape[1]
    width = next_power_of_2(pre.shape[1])
    return {
        "STRIDE_PRE_ROW": pre.stride(0),
        "STRIDE_OUT_ROW": 0 if out is None else out.stride(0),
        "UNITS": pre.shape[1],
        "COLUMNS": columns,
        "BLOCK_UNITS": width,
        "BLOCK_PADDING": next_power_of_2(max(1, columns - pre.shape[1])),
        "HAS_FACTOR": factor is not None,
        "IS_LINEAR": activation == "none",
        "EXACT_ERF": pre.dtype.itemsize == 4,
        "BLOCK_ROWS": max(1, 2048 // max(16, width)),
        "num_warps": max(2, min(8, width // 512)),
    }
