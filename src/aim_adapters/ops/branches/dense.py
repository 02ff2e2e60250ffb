"""Products with frozen weights in the compute dtype; an adapter is computed as further columns of the weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_adapters.ops.bottleneck import Adapter, Layer, MlpLayers, bottleneck_rows, padded, scaled_output
from aim_adapters.ops.branches.entrance import enter
from aim_adapters.ops.branches.linear import in_dtype, linear
from aim_adapters.ops.branches.plan import AttentionPlan, MlpPlan
from aim_adapters.ops.branches.products import HiddenGradient, MlpHidden, Projected, columns_of
from aim_adapters.ops.branches.tensors import AdapterTensors, AttentionTensors, MlpTensors
from aim_adapters.ops.frozen import InnerNorm, frozen_rows


class DenseProducts:
    """`Products` in the compute dtype.

    Args:
        device: Where the tokens are.
        dtype: The compute dtype.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._rows, self._bottleneck, self._dtype = frozen_rows(device), bottleneck_rows(device), dtype

    def project(
        self,
        x: Tensor,
        y: Tensor | None,
        t: AttentionTensors,
        adapter: AdapterTensors | None,
        branch: AttentionPlan,
    ) -> Projected:
        """Compute `Products.project`."""
        x, h = self._enter(x, y, t, branch.eps, branch.norm)
        pre = None if adapter is None else enter(h, adapter, branch.adapter)
        packed = linear(h, t.qkv_weight.to(self._dtype), in_dtype(t.qkv_bias, self._dtype))  # [M, 3*H*d]
        return Projected(x, packed, pre)

    def project_backward(self, d_qkv: Tensor, t: AttentionTensors) -> Tensor:
        """Compute `Products.project_backward`."""
        return d_qkv @ t.qkv_weight.to(d_qkv.dtype)

    def mlp_layers(self, t: MlpTensors, adapter: AdapterTensors | None) -> MlpLayers:
        """Return the layers with the adapter's beside them: one product gives both."""
        first, last = Layer(t.in_weight, t.in_bias), Layer(t.out_weight, t.out_bias)
        if t.gate_weight is None and adapter is not None:
            return self._bottleneck.mlp_layers(first, last, t.gamma, Adapter(*adapter, beside=True), self._dtype)
        weight, bias = self._last_layer(t, adapter)
        if t.gate_weight is None:
            return MlpLayers(t.in_weight.to(self._dtype), in_dtype(t.in_bias, self._dtype), weight, bias)
        down = None if adapter is None else Layer(adapter.down_weight, adapter.down_bias)
        joined = self._bottleneck.joined([Layer(t.gate_weight, t.gate_bias), first], down, self._dtype)
        return MlpLayers(*joined, weight, bias)

    def expand(
        self,
        x: Tensor,
        y: Tensor | None,
        layers: MlpLayers,
        t: MlpTensors,
        adapter: AdapterTensors | None,
        branch: MlpPlan,
    ) -> tuple[Tensor, Tensor | None, MlpHidden]:
        """Compute `Products.expand`."""
        x, h = self._enter(x, y, t, branch.eps, branch.norm)
        joined = linear(h, layers.first_weight, layers.first_bias)  # [M, C (+ C) (+ W)]
        return x, None if adapter is None else h, MlpHidden.split(joined, t)

    def activate(
        self, pre: MlpHidden, t: MlpTensors, branch: MlpPlan, factor: Tensor | None, rows_per_clip: int
    ) -> Tensor:
        """Return activations ``[M, C]``, with the adapter's hidden layer behind them ``[M, C + P]``."""
        rows, columns = pre.frozen.shape
        units = 0 if pre.adapter is None else padded(pre.adapter.shape[1])
        activated = pre.frozen.new_empty((rows, columns + units))
        own, inner = activated[:, :columns], _inner_norm(t, branch)
        if inner is None:
            self._rows.activation(pre.frozen, branch.activation, own, pre.value)
        else:
            self._rows.activation_norm(pre.frozen, branch.activation, inner, own, pre.value)
        if pre.adapter is not None:
            numbers = factor, rows_per_clip, branch.scale
            self._bottleneck.hidden(pre.adapter, activated[:, columns:], *numbers, branch.adapter)
        return activated

    def contract(self, activated: Tensor, layers: MlpLayers, t: MlpTensors, adapter: AdapterTensors | None) -> Tensor:
        """Compute `Products.contract`: one product gives both, added."""
        return linear(activated, layers.last_weight, layers.last_bias)

    def contract_backward(
        self, d_low: Tensor, layers: MlpLayers, t: MlpTensors, adapter: AdapterTensors
    ) -> HiddenGradient:
        """Compute `Products.contract_backward`: one product gives both."""
        before = 0 if t.gate_weight is None else columns_of(t)
        return hidden_gradient(d_low, layers.last_weight, adapter.up_weight.shape[1], before)

    def expand_backward(
        self,
        d_out: Tensor,
        d: HiddenGradient | None,
        pre: MlpHidden,
        layers: MlpLayers,
        t: MlpTensors,
        adapter: AdapterTensors | None,
        branch: MlpPlan,
    ) -> Tensor:
        """Compute `Products.expand_backward`: one product adds up what comes from both."""
        columns, gated = columns_of(t), t.gate_weight is not None
        if d is None or d.joined is None:
            d_pre = d_out.new_empty((len(d_out), len(layers.first_weight)), dtype=self._dtype)  # [M, C (+ C)]
            torch.mm(d_out.to(self._dtype), layers.last_weight, out=d_pre[:, -columns:])
        else:
            d_pre = d.joined[:, : len(layers.first_weight)]  # [M, C (+ C) + W]
        d_gate, d_own = (d_pre[:, :columns], d_pre[:, columns : 2 * columns]) if gated else (None, d_pre[:, :columns])
        inner = _inner_norm(t, branch)
        if inner is None:
            self._rows.activation_backward(d_own, pre.frozen, branch.activation, pre.value, d_gate)
        else:
            self._rows.activation_norm_backward(d_own, pre.frozen, branch.activation, inner, pre.value, d_gate)
        return d_pre @ layers.first_weight

    def kept(self, pre: MlpHidden) -> tuple[Tensor, Tensor | None]:
        """Compute `Products.kept`."""
        return pre.frozen if pre.joined is None else pre.joined, None

    def restored(self, pre: Tensor, units: Tensor | None, t: MlpTensors) -> MlpHidden:
        """Compute `Products.restored`."""
        return MlpHidden.split(pre, t)

    def _last_layer(self, t: MlpTensors, adapter: AdapterTensors | None) -> tuple[Tensor, Tensor | None]:
        """Return the last layer with LayerScale, an adapter's up-projection beside it: ``[D, C (+ P)]`` and ``[D]``."""
        weight, bias = scaled_output(t.out_weight, t.out_bias, t.gamma, self._dtype)
        columns = columns_of(t)
        if adapter is not None:
            return self._bottleneck.widened(weight, adapter.up_weight, adapter.up_bias, self._dtype, columns), bias
        padding = columns - weight.shape[1]
        return (F.pad(weight, (0, padding)) if padding else weight), bias

    def _enter(
        self, x: Tensor, y: Tensor | None, t: AttentionTensors | MlpTensors, eps: float, norm: str
    ) -> tuple[Tensor, Tensor]:
        """Return ``x + y``, and that normalized."""
        if y is None:
            return x, self._rows.layer_norm(x, t.norm_weight, t.norm_bias, eps, self._dtype, norm)
        return self._rows.add_layer_norm(x, y, t.norm_weight, t.norm_bias, eps, self._dtype, norm)


def _inner_norm(t: MlpTensors, branch: MlpPlan) -> InnerNorm | None:
    if not branch.inner_norm:
        return None
    return InnerNorm(t.inner_weight, t.inner_bias, branch.inner_eps, branch.inner_norm, t.in_weight.shape[0])


def hidden_gradient(d: Tensor, widened: Tensor, units: int, before: int = 0) -> HiddenGradient:
    """Return the gradient of what `BottleneckRows.widened` weights multiply, up to the adapter's units.

    Args:
        d: Gradient of what they return ``[M, D]``.
        widened: The weights ``[D, K + P]``.
        units: W.
        before: Columns of memory to leave in front.
    """
    first = widened.shape[1] - padded(units)
    columns = first + -(-units // 8) * 8  # rows a multiple of 16 bytes long: others take a slow path
    if before:
        joined = d.new_empty((len(d), before + columns))
        torch.mm(d, widened[:, :columns], out=joined[:, before:])
    else:
        joined = d @ widened[:, :columns]
    start = before + first
    return HiddenGradient(joined[:, start : start + units], joined)
