"""Products with frozen weights in the compute dtype; an adapter is computed as further columns of the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from aim_adapters.ops.bottleneck import bottleneck_rows, padded
from aim_adapters.ops.branches.entrance import enter
from aim_adapters.ops.branches.linear import in_dtype, linear, scaled_output
from aim_adapters.ops.branches.plan import MlpPlan
from aim_adapters.ops.branches.products import FirstLayer, HiddenGradient, MlpHidden, Projected
from aim_adapters.ops.branches.tensors import AdapterTensors, AttentionTensors, MlpTensors
from aim_adapters.ops.frozen import frozen_rows


class DenseProducts:
    """`Products` in the compute dtype.

    Args:
        device: Where the tokens are.
        dtype: The compute dtype.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._rows, self._bottleneck, self._dtype = frozen_rows(device), bottleneck_rows(device), dtype

    def project(
        self, x: Tensor, y: Tensor | None, t: AttentionTensors, adapter: AdapterTensors | None, eps: float
    ) -> Projected:
        """Compute `Products.project`."""
        x, h = self._enter(x, y, t, eps)
        pre = None if adapter is None else enter(h, adapter)
        packed = linear(h, t.qkv_weight.to(self._dtype), in_dtype(t.qkv_bias, self._dtype))  # [M, 3*H*d]
        return Projected(x, packed, pre)

    def project_backward(self, d_qkv: Tensor, t: AttentionTensors) -> Tensor:
        """Compute `Products.project_backward`."""
        return d_qkv @ t.qkv_weight.to(d_qkv.dtype)

    def first_layer(self, t: MlpTensors, adapter: AdapterTensors | None) -> FirstLayer:
        """Return the first layer with the adapter's down-projection below it: one product gives both."""
        if adapter is None:
            return FirstLayer(t.in_weight.to(self._dtype), in_dtype(t.in_bias, self._dtype))
        joined = self._bottleneck.joined(t.in_weight, t.in_bias, adapter.down_weight, adapter.down_bias, self._dtype)
        return FirstLayer(*joined)

    def expand(
        self,
        x: Tensor,
        y: Tensor | None,
        first: FirstLayer,
        t: MlpTensors,
        adapter: AdapterTensors | None,
        eps: float,
    ) -> tuple[Tensor, Tensor | None, MlpHidden]:
        """Compute `Products.expand`."""
        x, h = self._enter(x, y, t, eps)
        joined = linear(h, first.weight, first.bias)  # [M, K (+ W)]
        return x, None if adapter is None else h, MlpHidden.split(joined, len(t.in_weight))

    def activate(self, pre: MlpHidden, branch: MlpPlan, factor: Tensor | None, rows_per_clip: int) -> Tensor:
        """Return activations ``[M, K]``, with the adapter's hidden layer behind them ``[M, K + P]``."""
        if pre.adapter is None:
            return self._rows.activation(pre.frozen, branch.activation)
        rows, width = pre.frozen.shape
        activated = pre.frozen.new_empty((rows, width + padded(pre.adapter.shape[1])))
        self._rows.activation(pre.frozen, branch.activation, out=activated[:, :width])
        self._bottleneck.hidden(pre.adapter, activated[:, width:], factor, rows_per_clip, branch.scale)
        return activated

    def contract(self, activated: Tensor, t: MlpTensors, adapter: AdapterTensors | None) -> Tensor:
        """Compute `Products.contract`: one product gives both, added."""
        weight, bias = scaled_output(t.out_weight, t.out_bias, t.gamma, self._dtype)
        if adapter is not None:
            weight = self._bottleneck.widened(weight, adapter.up_weight, adapter.up_bias, self._dtype)
        return linear(activated, weight, bias)

    def contract_backward(self, d_low: Tensor, t: MlpTensors, adapter: AdapterTensors) -> HiddenGradient:
        """Compute `Products.contract_backward`: one product gives both."""
        weight, _ = scaled_output(t.out_weight, t.out_bias, t.gamma, self._dtype)
        widened = self._bottleneck.widened(weight, adapter.up_weight, adapter.up_bias, self._dtype)
        return hidden_gradient(d_low, widened, adapter.up_weight.shape[1])

    def expand_backward(
        self,
        d_out: Tensor,
        d: HiddenGradient | None,
        pre: MlpHidden,
        first: FirstLayer,
        t: MlpTensors,
        adapter: AdapterTensors | None,
        activation: str,
    ) -> Tensor:
        """Compute `Products.expand_backward`: one product adds up what comes from both."""
        if d is None or d.joined is None:
            d_pre = d_out.to(self._dtype) @ scaled_output(t.out_weight, t.out_bias, t.gamma, self._dtype)[0]  # [M, K]
        else:
            d_pre = d.joined[:, : len(first.weight)]  # [M, K + W]
        self._rows.activation_backward(d_pre[:, : len(t.in_weight)], pre.frozen, activation)
        return d_pre @ first.weight

    def kept(self, pre: MlpHidden) -> tuple[Tensor, Tensor | None]:
        """Compute `Products.kept`."""
        return pre.frozen if pre.joined is None else pre.joined, None

    def restored(self, pre: Tensor, units: Tensor | None, t: MlpTensors) -> MlpHidden:
        """Compute `Products.restored`."""
        return MlpHidden.split(pre, len(t.in_weight))

    def _enter(
        self, x: Tensor, y: Tensor | None, t: AttentionTensors | MlpTensors, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return ``x + y``, and that normalized."""
        if y is None:
            return x, self._rows.layer_norm(x, t.norm_weight, t.norm_bias, eps, self._dtype)
        return self._rows.add_layer_norm(x, y, t.norm_weight, t.norm_bias, eps, self._dtype)


def hidden_gradient(d: Tensor, widened: Tensor, units: int) -> HiddenGradient:
    """Return the gradient of what `BottleneckRows.widened` weights multiply, up to the adapter's units.

    Args:
        d: Gradient of what they return ``[M, D]``.
        widened: The weights ``[D, K + P]``.
        units: W.
    """
    first = widened.shape[1] - padded(units)
    joined = d @ widened[:, : first + -(-units // 8) * 8]  # rows a multiple of 16 bytes long: others take a slow path
    return HiddenGradient(joined[:, first : first + units], joined)
