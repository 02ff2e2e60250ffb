"""Training in one call: recipe, data, checkpoints, what to do when something goes wrong."""

from aim_adapters.training.baseline_models import Baseline
from aim_adapters.training.baselines import (
    BaselineRow,
    build_baseline,
    list_baselines,
    load_baseline,
    save_baseline,
)
from aim_adapters.training.fit import fit
from aim_adapters.training.probe_models import AttentiveProbe, MeanProbe
from aim_adapters.training.result import FitResult, gradient_bytes

__all__ = [
    "AttentiveProbe",
    "Baseline",
    "BaselineRow",
    "FitResult",
    "MeanProbe",
    "build_baseline",
    "fit",
    "gradient_bytes",
    "list_baselines",
    "load_baseline",
    "save_baseline",
]
