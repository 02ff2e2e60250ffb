"""Make linear layers whose values are chosen, not drawn at random first and thrown away."""

from __future__ import annotations

import torch
from torch import nn


def zero_linear(
    in_features: int, out_features: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> nn.Linear:
    """Return a linear layer with weight and bias zero.

    ``nn.Linear`` always draws random weights; for the wide layers of a large model that is most of the time that
    wrapping takes, and it moves the random state for nothing.
    """
    layer = nn.Linear(1, 1, device="cpu")
    layer.in_features, layer.out_features = in_features, out_features
    layer.weight = nn.Parameter(torch.zeros(out_features, in_features, device=device, dtype=dtype))
    layer.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))
    return layer
