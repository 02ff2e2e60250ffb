"""Training in one call: recipe, data, checkpoints, what to do when something goes wrong."""

from aim_adapters.training.fit import FitResult, fit, gradient_bytes

__all__ = ["FitResult", "fit", "gradient_bytes"]
