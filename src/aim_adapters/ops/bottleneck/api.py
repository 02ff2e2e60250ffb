"""What computes the hidden layer of an adapter: the protocol, and the choice by device."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from aim_adapters.ops.bottleneck import aten
from aim_adapters.ops.bottleneck.layer import Layer
from aim_adapters.ops.bottleneck.weights import Adapter, MlpLayers, OutputLayer


class BottleneckRows(Protocol):
    """The hidden layer of an adapter, as columns beside those of a frozen layer. Triton's kernels take no float64."""

    def hidden(
        self,
        pre: Tensor,
        out: Tensor,
        factor: Tensor | None,
        rows_per_factor: int,
        scale: float,
        activation: str,
    ) -> None:
        """Write ``f * act(pre)``, then a column of ``f``, then zeros; f is ``scale * factor`` of the row.

        Args:
            pre: What the down-projection gave ``[M, W]``, floating point, rows any distance apart.
            out: ``[M, P]`` of the same dtype, P more than W, rows any distance apart; overwritten.
            factor: Stochastic depth of each clip ``[clips]``, float32 at least, or None for 1.
            rows_per_factor: Rows of a clip.
            scale: Factor on the branch.
            activation: ``"gelu"``, or ``"none"`` of a linear adapter.
        """
        ...

    def hidden_backward(
        self,
        d_hidden: Tensor,
        pre: Tensor,
        out: Tensor | None,
        factor: Tensor | None,
        rows_per_factor: int,
        scale: float,
        activation: str,
    ) -> Tensor:
        """Turn the gradient of ``act(pre)`` behind f into that of ``pre``, in place.

        Args:
            d_hidden: Gradient of the branch times the up-projection's weights, without f, ``[M, W]``; overwritten.
            pre: What the down-projection gave ``[M, W]``, same dtype, rows any distance apart.
            out: Where to write what `hidden` writes, or None.
            factor: Stochastic depth of each clip ``[clips]``, float32 at least, or None for 1.
            rows_per_factor: Rows of a clip.
            scale: Factor on the branch.
            activation: As of `hidden`.

        Returns:
            Sums of rows ``[n, W]``, float32 (float64 for float64): `gradients` adds them up to the gradient of the
            down-projection's bias.
        """
        ...

    def gradients(
        self, d_down: Tensor, sums: Tensor, d_up: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of an adapter, from what products and `hidden_backward` gave.

        Args:
            d_down: That of the down-projection's weights ``[W, K]``, contiguous, from the products with the frozen
                layer in front; what comes from ``bias`` is added in place.
            sums: What `hidden_backward` returned, ``[n, W]``.
            d_up: That of the up-projection's weights and, behind them, of its bias ``[D, P]``, contiguous.
            bias: Of the frozen layer that the down-projection is composed with, ``[K]``, any floating dtype; or None.

        Returns:
            Those of the down-projection's weights ``[W, K]``, which is ``d_down``, and bias ``[W]``, float32 (float64
            for float64); of the up-projection's weights ``[D, W]`` and bias ``[D]``, in the dtype of ``d_up``.
        """
        ...

    def widened(
        self, weight: Tensor | None, up_weight: Tensor, up_bias: Tensor, dtype: torch.dtype, columns: int | None = None
    ) -> Tensor:
        """Return a layer's weights with an up-projection's beside them, for the columns that `hidden` writes.

        Args:
            weight: The layer's own ``[D, K]``, any floating dtype; or None for an up-projection alone.
            up_weight: ``[D, W]``, any floating dtype.
            up_bias: ``[D]``, any floating dtype.
            dtype: Dtype of the result.
            columns: Those of the layer's own in the result, zeros behind K; K if None.

        Returns:
            ``[D, K + P]``, P columns for the adapter.
        """
        ...

    def joined(self, layers: Sequence[Layer], down: Layer | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return layers as one, with a down-projection's rows below theirs.

        Args:
            layers: One ``[K, D]``, or two: each then takes `aligned` rows, zeros behind K.
            down: The down-projection ``[W, D]``, or None for the layers alone.
            dtype: Dtype of the result.

        Returns:
            Weights ``[K + W, D]`` and biases ``[K + W]``, or with two layers ``[2*aligned(K) + W, D]``.
        """
        ...

    def output_layer(
        self,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        adapters: Sequence[Adapter],
        dtype: torch.dtype,
    ) -> OutputLayer:
        """Put together a frozen output layer, the LayerScale behind it, and adapters that read what it returns.

        Args:
            weight: ``[D, K]``, any floating dtype.
            bias: ``[D]``, any floating dtype, or None.
            gamma: LayerScale ``[D]``, any floating dtype, or None.
            adapters: Two at most.
            dtype: Dtype of the result.
        """
        ...

    def mlp_layers(
        self,
        first: Layer,
        last: Layer,
        gamma: Tensor | None,
        adapter: Adapter,
        dtype: torch.dtype,
    ) -> MlpLayers:
        """Put together the layers of a frozen MLP, the LayerScale behind it, and an adapter beside it.

        Args:
            first: Weight ``[K, D]`` and bias ``[K]`` or None, any floating dtype.
            last: Weight ``[D, K]`` and bias ``[D]`` or None, any floating dtype.
            gamma: LayerScale ``[D]``, any floating dtype, or None.
            adapter: The adapter.
            dtype: Dtype of the result.
        """
        ...


@functools.cache
def bottleneck_rows(device: torch.device) -> BottleneckRows:
    """Return what computes the hidden layer on a device."""
    if device.type != "cuda":
        return aten
    from aim_adapters.ops.bottleneck import triton  # not at the top: it imports Triton

    return triton
