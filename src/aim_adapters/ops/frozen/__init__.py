"""Row-wise parts of a frozen block: LayerNorm and the activation of its MLP, forward and backward."""

from aim_adapters.ops.frozen.api import FrozenRows, ScaledRows, frozen_rows, scaled_rows
from aim_adapters.ops.frozen.scaled import Scaled, product

__all__ = ["FrozenRows", "Scaled", "ScaledRows", "frozen_rows", "product", "scaled_rows"]
