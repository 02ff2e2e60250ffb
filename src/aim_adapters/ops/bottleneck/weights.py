"""Records of weights that are put together: a frozen layer, and the adapters around it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Adapter(NamedTuple):
    """An adapter of width W around a frozen layer ``[D, K]``, all of any floating dtype.

    Attributes:
        down_weight: ``[W, D]``.
        down_bias: ``[W]``.
        up_weight: ``[D, W]``.
        up_bias: ``[D]``.
        beside: One product gives the layer and the up-projection, added.
    """

    down_weight: Tensor
    down_bias: Tensor
    up_weight: Tensor
    up_bias: Tensor
    beside: bool


class Composed(NamedTuple):
    """An adapter behind a layer, its down-projection composed with the layer.

    Attributes:
        weight: Of the two as one ``[W, K]``.
        bias: ``[W]``.
        widened: Of the up-projection ``[D, P]``, or with the layer's in front ``[D, K + P]``.
    """

    weight: Tensor
    bias: Tensor
    widened: Tensor


class OutputLayer(NamedTuple):
    """A frozen layer in the dtype of its products, and the adapters behind it.

    Attributes:
        weight: ``[D, K]``, rows may lie apart.
        bias: ``[D]``, or None.
        adapters: In order.
    """

    weight: Tensor
    bias: Tensor | None
    adapters: list[Composed]


class MlpLayers(NamedTuple):
    """The two layers of an MLP, each as one product with what lies beside it: the adapter's rows or columns.

    Attributes:
        first_weight: ``[K + W, D]``; of a gated MLP, of gate and value one below the other.
        first_bias: ``[K + W]``, or None.
        last_weight: With LayerScale ``[D, K + P]``.
        last_bias: ``[D]``, or None.
    """

    first_weight: Tensor
    first_bias: Tensor | None
    last_weight: Tensor
    last_bias: Tensor | None


def scaled_output(
    weight: Tensor, bias: Tensor | None, gamma: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a frozen output layer with the LayerScale behind it, in a dtype."""
    if gamma is not None:
        weight, bias = gamma.unsqueeze(-1) * weight, None if bias is None else gamma * bias
    return weight.to(dtype), None if bias is None else bias.to(dtype)
