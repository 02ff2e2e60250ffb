"""A linear layer as weight and bias."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Layer(NamedTuple):
    """A linear layer.

    Attributes:
        weight: ``[K, D]``, any floating dtype.
        bias: ``[K]``, any floating dtype, or None for zeros.
    """

    weight: Tensor
    bias: Tensor | None
