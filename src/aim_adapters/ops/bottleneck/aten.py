"""The hidden layer of an adapter by PyTorch's own operators, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_adapters.ops.bottleneck.layer import Layer
from aim_adapters.ops.bottleneck.weights import Adapter, Composed, MlpLayers, OutputLayer, scaled_output
from aim_adapters.ops.bottleneck.width import aligned, padded


def hidden(
    pre: Tensor, out: Tensor, factor: Tensor | None, rows_per_factor: int, scale: float, activation: str
) -> None:
    """Compute `BottleneckRows.hidden` by PyTorch's operators."""
    width = pre.shape[1]
    f = _of_rows(factor, rows_per_factor, scale)
    torch.mul(F.gelu(pre) if activation == "gelu" else pre, f, out=out[:, :width])
    out[:, width:] = 0
    out[:, width : width + 1] = f


def hidden_backward(
    d_hidden: Tensor,
    pre: Tensor,
    out: Tensor | None,
    factor: Tensor | None,
    rows_per_factor: int,
    scale: float,
    activation: str,
) -> Tensor:
    """Compute `BottleneckRows.hidden_backward` by PyTorch's operators."""
    if factor is not None or scale != 1:
        d_hidden.mul_(_of_rows(factor, rows_per_factor, scale))
    if activation == "gelu":
        torch.ops.aten.gelu_backward(d_hidden, pre, grad_input=d_hidden)
    if out is not None:
        hidden(pre, out, factor, rows_per_factor, scale, activation)
    return d_hidden.sum(0, keepdim=True, dtype=torch.promote_types(pre.dtype, torch.float32))


def gradients(d_down: Tensor, sums: Tensor, d_up: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `BottleneckRows.gradients` by PyTorch's operators."""
    d_down_b, width = sums.sum(0), sums.shape[1]
    if bias is not None:
        d_down.addr_(d_down_b.to(d_down.dtype), bias.to(d_down.dtype))
    return d_down, d_down_b, d_up[:, :width].contiguous(), d_up[:, width].contiguous()


def widened(
    weight: Tensor | None, up_weight: Tensor, up_bias: Tensor, dtype: torch.dtype, columns: int | None = None
) -> Tensor:
    """Compute `BottleneckRows.widened` by PyTorch's operators."""
    rows, width = up_weight.shape
    own = [] if weight is None else [weight]
    given = 0 if weight is None else weight.shape[1]
    if columns is not None and columns > given:
        own.append(up_weight.new_zeros((rows, columns - given)))
    zeros = up_weight.new_zeros((rows, padded(width) - width - 1))
    return torch.cat([each.to(dtype) for each in (*own, up_weight, up_bias.unsqueeze(1), zeros)], 1)


def joined(layers: Sequence[Layer], down: Layer | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Compute `BottleneckRows.joined` by PyTorch's operators."""
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for layer in (*layers, *([] if down is None else [down])):
        bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
        padding = 0 if len(layers) == 1 or layer is down else aligned(len(bias)) - len(bias)
        weights.append(layer.weight.to(dtype))
        biases.append(bias.to(dtype))
        if padding:
            weights.append(layer.weight.new_zeros((padding, layer.weight.shape[1]), dtype=dtype))
            biases.append(bias.new_zeros(padding, dtype=dtype))
    return torch.cat(weights), torch.cat(biases)


def output_layer(
    weight: Tensor, bias: Tensor | None, gamma: Tensor | None, adapters: Sequence[Adapter], dtype: torch.dtype
) -> OutputLayer:
    """Compute `BottleneckRows.output_layer` by PyTorch's operators."""
    weight, bias = scaled_output(weight, bias, gamma, dtype)
    found = []
    for down_weight, down_bias, up_weight, up_bias, beside in adapters:
        down_weight, down_bias = down_weight.to(dtype), down_bias.to(dtype)
        composed_bias = down_bias if bias is None else torch.addmv(down_bias, down_weight, bias)
        wide = widened(weight if beside else None, up_weight, up_bias, dtype)
        found.append(Composed(down_weight @ weight, composed_bias, wide))
    return OutputLayer(weight, bias, found)


def mlp_layers(
    first: Layer,
    last: Layer,
    gamma: Tensor | None,
    adapter: Adapter,
    dtype: torch.dtype,
) -> MlpLayers:
    """Compute `BottleneckRows.mlp_layers` by PyTorch's operators."""
    weight, bias = scaled_output(*last, gamma, dtype)
    wide = widened(weight, adapter.up_weight, adapter.up_bias, dtype)
    return MlpLayers(*joined([first], Layer(adapter.down_weight, adapter.down_bias), dtype), wide, bias)


def _of_rows(factor: Tensor | None, rows: int, scale: float) -> Tensor | float:
    return scale if factor is None else factor.repeat_interleave(rows).unsqueeze(-1) * scale  # [M, 1]
