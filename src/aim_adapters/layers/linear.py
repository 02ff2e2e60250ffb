"""Linear layers that start at zero."""

from __future__ import annotations

import torch
from torch import nn


def zero_linear(
    in_features: int, out_features: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> nn.Linear:
    """Return a linear layer whose weight and bias are zero.

    ``nn.Linear`` always draws random weights. For the wide layers of a large model that takes most of the time of
    wrapping, and it advances the random number generator for nothing.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """
    layer = nn.Linear(1, 1, device="cpu")
    layer.in_features, layer.out_features = in_features, out_features
    layer.weight = nn.Parameter(torch.zeros(out_features, in_features, device=device, dtype=dtype))
    layer.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))
    return layer
