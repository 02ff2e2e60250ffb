"""What an optimizer of somebody else's making does to adapters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from aim_adapters.errors import warn


def warn_decayed(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], message: str) -> None:
    """Warn if weight decay is applied to the temporal embedding, which is not what it is for.

    Args:
        model: A module that contains a wrapped model.
        optimizers: What trains it.
        message: What to warn with.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    decayed = {id(parameter) for group in groups if group.get("weight_decay") for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if name.endswith("aim.temporal_embedding") and id(parameter) in decayed:
            warn(message)
