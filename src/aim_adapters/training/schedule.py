"""The learning rate over a run, the optimizer's groups, and averaged weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from aim_adapters.core import is_wrapped
from aim_adapters.parameters import adapter_param_groups


def rate_at(step: int, *, steps: int, warmup: int, start: float) -> float:
    """Return the learning rate of a step as a share of the highest: a linear warm-up, then a cosine to zero.

    Args:
        step: The step, from 0.
        steps: Steps of the whole run.
        warmup: Steps of the warm-up.
        start: Where the warm-up begins, as a share of the highest.
    """
    if step < warmup:
        return start + (1 - start) * (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def make_groups(model: nn.Module, *, rate: float, head_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups for AdamW: weights and others, each with the rate of adapters or of the classifier.

    Args:
        model: A wrapped model, or a baseline.
        rate: Learning rate of all but the classifier.
        head_rate: Learning rate of the classifier.
        weight_decay: Weight decay of weights.
    """
    if is_wrapped(model):
        groups = adapter_param_groups(model, weight_decay)
    else:
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        # Positions and tokens are matrices too, but none of their names ends like this.
        decayed = {name for name, parameter in trained if parameter.ndim > 1 and name.endswith("weight")}
        groups = [
            {"params": [p for name, p in trained if name in decayed], "weight_decay": weight_decay},
            {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
        ]
    heads = {id(parameter) for name, parameter in model.named_parameters() if _is_head(name)}
    split = []
    for group in groups:
        for in_head, value in ((False, rate), (True, head_rate)):
            members = [parameter for parameter in group["params"] if (id(parameter) in heads) == in_head]
            if members:
                split.append({**group, "params": members, "lr": value, "highest": value})
    return split


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set the learning rate of every group to a share of its highest.

    Args:
        optimizer: The optimizer.
        share: The share.
    """
    for group in optimizer.param_groups:
        value = share * group["highest"]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


class AveragedWeights:
    """An exponential moving average of what trains.

    Args:
        parameters: What trains, by name.
        decay: Share of the average that stays at each step.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._parameters = parameters
        self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        averages = list(self.values.values())
        torch._foreach_lerp_(averages, [self._parameters[name].detach() for name in self.values], 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in the place of the weights for a while."""
        weights = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._fill(self.values.items())
        try:
            yield
        finally:
            self._fill(weights.items())

    @torch.no_grad()
    def _fill(self, values: Iterable[tuple[str, Tensor]]) -> None:
        for name, value in values:
            self._parameters[name].copy_(value)


def _is_head(name: str) -> bool:
    """Return whether a parameter is the classifier's: ours, or a baseline's."""
    parts = name.split(".")
    return any(a == "aim" and b.startswith("head") for a, b in itertools.pairwise(parts)) or (
        "aim" not in parts and any(part in ("head", "classifier") for part in parts)
    )
