"""Row-wise parts of a frozen block: norms and the activations of its MLP, forward and backward."""

from aim_adapters.ops.frozen.api import FrozenRows, ScaledRows, frozen_rows, scaled_rows
from aim_adapters.ops.frozen.inner import InnerNorm
from aim_adapters.ops.frozen.scaled import Scaled, product

__all__ = ["FrozenRows", "InnerNorm", "Scaled", "ScaledRows", "frozen_rows", "product", "scaled_rows"]
