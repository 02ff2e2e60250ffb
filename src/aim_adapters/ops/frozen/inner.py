"""The norm of an MLP's activations in front of its last layer."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class InnerNorm(NamedTuple):
    """A norm over the hidden units of an MLP.

    Attributes:
        weight: ``[K]``, any floating dtype, or None.
        bias: ``[K]``, any floating dtype, or None.
        eps: Added to the variance, or to the mean of squares.
        norm: ``"layer"`` or ``"rms"``.
        units: K; columns behind them are no units, and hold zeros.
    """

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    norm: str
    units: int
