"""Features of a frozen image model, computed once for all clips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from aim_adapters.training import AttentiveProbe, MeanProbe

HEADS = 6


@torch.no_grad()
def cached_features(
    model: Any, frames: Tensor, *, normalize: Callable[[Tensor], Tensor], tokens: bool, batch: int = 128
) -> Tensor:
    """Return the features of each frame of clips, in bfloat16.

    Args:
        model: An image model of timm.
        frames: Clips ``[B, T, 3, S, S]``, uint8.
        normalize: Turns them into what the model reads.
        tokens: Whether all tokens of a frame are returned, or what the model pools.
        batch: Clips at a time.

    Returns:
        ``[B, T, N, D]``, or ``[B, T, D]`` where pooled.
    """
    model.eval()
    found = []
    for part in frames.split(batch):
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=frames.is_cuda):
            features = model.forward_features(normalize(part).flatten(0, 1))  # [B*T, N, D]
            features = features if tokens else model.forward_head(features, pre_logits=True)  # [B*T, D]
        found.append(features.to(torch.bfloat16).unflatten(0, part.shape[:2]))
    return torch.cat(found)


def new_probe(way: str, features: Tensor, classes: int) -> nn.Module:
    """Return the probe of a way for cached features."""
    if way == "probe":
        return MeanProbe(features.shape[-1], classes)
    return AttentiveProbe(features.shape[-1], classes, frames=features.shape[1], heads=HEADS)
