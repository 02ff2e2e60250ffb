"""Products with frozen weights in float8, where that saves time.

That is where a kernel writes the tokens anyway and can write them scaled: norms in front of the attention's projection
and of the MLP, activations and their gradients; and for the gradients of the MLP's output and of the attention's
projection, wide enough to pay for one more pass. The attention's output and its gradient would each need a pass of
their own, which costs what a product of D columns gains: these products stay in the compute dtype, as do all of
adapters.

Frozen weights are scaled on the way at every call, so that nothing is stored and nothing can go stale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aim_adapters.ops.bottleneck import MlpLayers, bottleneck_rows, padded, scaled_output
from aim_adapters.ops.branches.entrance import enter
from aim_adapters.ops.branches.linear import in_dtype, linear
from aim_adapters.ops.branches.plan import AttentionPlan, MlpPlan
from aim_adapters.ops.branches.products import HiddenGradient, MlpHidden, Projected
from aim_adapters.ops.branches.tensors import AdapterTensors, AttentionTensors, MlpTensors
from aim_adapters.ops.frozen import Scaled, product, scaled_rows


class ScaledProducts:
    """`Products` in float8.

    Args:
        device: Where the tokens are.
        dtype: The compute dtype, which products return.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._scaled, self._dtype = scaled_rows(device), dtype
        self._bottleneck = bottleneck_rows(device)

    def project(
        self,
        x: Tensor,
        y: Tensor | None,
        t: AttentionTensors,
        adapter: AdapterTensors | None,
        branch: AttentionPlan,
    ) -> Projected:
        """Compute `Products.project`; adapted tokens are scaled in a pass of their own."""
        wanted, pre = None if adapter is None else self._dtype, None
        x, h, scaled = self._scaled.layer_norm(x, y, t.norm_weight, t.norm_bias, branch.eps, wanted)
        if adapter is not None and h is not None:
            pre = enter(h, adapter, branch.adapter)
            scaled = self._scaled.quantize(h)
        weight = self._scaled.quantize(t.qkv_weight)
        packed = product(scaled, weight, in_dtype(t.qkv_bias, self._dtype), self._dtype)  # [M, 3*H*d]
        return Projected(x, packed, pre)

    def project_backward(self, d_qkv: Tensor, t: AttentionTensors) -> Tensor:
        """Compute `Products.project_backward`."""
        weight = self._scaled.quantize_columns(t.qkv_weight)
        return product(self._scaled.quantize(d_qkv), weight, None, d_qkv.dtype)

    def mlp_layers(self, t: MlpTensors, adapter: AdapterTensors | None) -> MlpLayers:
        """Return the frozen layers alone, the last with LayerScale."""
        return MlpLayers(t.in_weight, t.in_bias, *scaled_output(t.out_weight, t.out_bias, t.gamma, self._dtype))

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
        wanted = None if adapter is None else self._dtype
        x, h, scaled = self._scaled.layer_norm(x, y, t.norm_weight, t.norm_bias, branch.eps, wanted)
        weight, bias = self._scaled.quantize(layers.first_weight), in_dtype(layers.first_bias, self._dtype)
        pre = product(scaled, weight, bias, self._dtype)  # [M, K]
        if adapter is None or h is None:
            return x, None, MlpHidden(pre, None, None, None)
        units = linear(h, adapter.down_weight.to(self._dtype), adapter.down_bias.to(self._dtype))  # [M, W]
        return x, h, MlpHidden(pre, None, units, None)

    def activate(
        self, pre: MlpHidden, t: MlpTensors, branch: MlpPlan, factor: Tensor | None, rows_per_clip: int
    ) -> tuple[Scaled, Tensor | None]:
        """Return activations ``[M, K]``, and the adapter's hidden layer ``[M, P]`` or None."""
        activated, hidden = self._scaled.activation(pre.frozen, branch.activation), None
        if pre.adapter is not None:
            rows, width = pre.adapter.shape
            hidden = pre.adapter.new_empty((rows, padded(width)))
            self._bottleneck.hidden(pre.adapter, hidden, factor, rows_per_clip, branch.scale, branch.adapter)
        return activated, hidden

    def contract(
        self, activated: tuple[Scaled, Tensor | None], layers: MlpLayers, t: MlpTensors, adapter: AdapterTensors | None
    ) -> Tensor:
        """Compute `Products.contract`."""
        values, hidden = activated
        out = product(values, self._scaled.quantize(layers.last_weight), layers.last_bias, self._dtype)  # [M, D]
        if hidden is not None and adapter is not None:
            out.addmm_(hidden, self._bottleneck.widened(None, adapter.up_weight, adapter.up_bias, self._dtype).T)
        return out

    def contract_backward(
        self, d_low: Tensor, layers: MlpLayers, t: MlpTensors, adapter: AdapterTensors
    ) -> HiddenGradient:
        """Compute `Products.contract_backward` of the adapter; that of the MLP follows in `expand_backward`."""
        return HiddenGradient(d_low @ adapter.up_weight.to(self._dtype), None)

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
        """Compute `Products.expand_backward`."""
        columns = self._scaled.quantize_columns(layers.last_weight)
        d_activated = product(self._scaled.quantize(d_out), columns, None, self._dtype)  # [M, K]
        d_pre = self._scaled.activation_backward(d_activated, pre.frozen, branch.activation)
        del d_activated
        d_h = product(d_pre, self._scaled.quantize_columns(layers.first_weight), None, self._dtype)  # [M, D]
        if d is not None and adapter is not None:
            d_h.addmm_(d.adapter, adapter.down_weight.to(self._dtype))
        return d_h

    def kept(self, pre: MlpHidden) -> tuple[Tensor, Tensor | None]:
        """Compute `Products.kept`."""
        return pre.frozen, pre.adapter

    def restored(self, pre: Tensor, units: Tensor | None, t: MlpTensors) -> MlpHidden:
        """Compute `Products.restored`."""
        return MlpHidden(pre, None, units, None)
