"""Training in one call: recipe, data, checkpoints, what to do when something goes wrong."""

from aim_adapters.training.fit import fit
from aim_adapters.training.result import FitResult, gradient_bytes

__all__ = ["FitResult", "fit", "gradient_bytes"]
