"""An adapter with an inner skip between the norm and the projection of a branch: ``h + up(act(down(h)))``.

The recipe for Something-Something v2 has one in front of temporal attention.
"""

from __future__ import annotations

from torch import Tensor

from aim_adapters.ops.bottleneck import bottleneck_rows, padded
from aim_adapters.ops.branches.linear import linear, wide_product
from aim_adapters.ops.branches.tensors import AdapterTensors


def enter(h: Tensor, adapter: AdapterTensors, activation: str) -> Tensor:
    """Adapt normalized tokens in place.

    Args:
        h: ``[M, D]``, floating point; overwritten.
        adapter: The adapter's weights, any floating dtype.
        activation: Of the adapter, ``"gelu"`` or ``"none"``.

    Returns:
        What the adapter activates ``[M, W]``.
    """
    rows, dtype = bottleneck_rows(h.device), h.dtype
    pre = linear(h, adapter.down_weight.to(dtype), adapter.down_bias.to(dtype))
    hidden = h.new_empty((len(h), padded(pre.shape[1])))
    rows.hidden(pre, hidden, None, 1, 1.0, activation)
    h.addmm_(hidden, rows.widened(None, adapter.up_weight, adapter.up_bias, dtype).T)
    return pre


def enter_backward(d_h: Tensor, h: Tensor, pre: Tensor, adapter: AdapterTensors, activation: str) -> AdapterTensors:
    """Compute the gradients of `enter`.

    Args:
        d_h: Gradient of the adapted tokens ``[M, D]``; becomes that of the normalized ones, in place.
        h: The normalized tokens, as they were ``[M, D]``, same dtype.
        pre: What `enter` returned.
        adapter: The adapter's weights, any floating dtype.
        activation: Of the adapter.

    Returns:
        The gradients of the adapter's weights, in the dtypes that products return.
    """
    rows, dtype = bottleneck_rows(h.device), h.dtype
    d_pre = d_h @ adapter.up_weight.to(dtype)  # [M, W]
    hidden = h.new_empty((len(h), padded(pre.shape[1])))
    sums = rows.hidden_backward(d_pre, pre, hidden, None, 1, 1.0, activation)
    d_down, d_up = wide_product(d_pre.T, h), wide_product(d_h.T, hidden)
    d_h.addmm_(d_pre, adapter.down_weight.to(dtype))
    return AdapterTensors(*rows.gradients(d_down, sums, d_up, None))
