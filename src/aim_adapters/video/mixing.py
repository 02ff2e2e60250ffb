"""Batches of clips mixed with one another, and their labels with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from aim_adapters.arguments import require_integer, require_number
from aim_adapters.errors import InputError


def mixup(clips: Tensor, labels: Tensor, *, num_classes: int, alpha: float = 0.8) -> tuple[Tensor, Tensor]:
    """Return a batch in which each clip is blended with another one (Zhang et al., 2018), by torchvision's ``MixUp``.

    Args:
        clips: ``[B, T, C, H, W]``, floating point: blend after `Normalize`.
        labels: Classes ``[B]``, int64, or their probabilities ``[B, K]``.
        num_classes: Number of classes, K.
        alpha: Parameter of the Beta distribution from which the one factor of the batch is drawn.

    Returns:
        The clips, and the probabilities of their classes ``[B, K]``, float32, which ``cross_entropy`` accepts.

    Raises:
        InputError: The clips or labels are of another kind or shape.
        ConfigError: ``num_classes`` or ``alpha`` is out of range.
    """
    _require_batch(clips, labels)
    if not clips.is_floating_point():
        raise InputError(f"mixup blends normalized clips, got {clips.dtype}; call it after Normalize, or use cutmix")
    return _mixed(v2.MixUp, clips, labels, num_classes=num_classes, alpha=alpha)


def cutmix(clips: Tensor, labels: Tensor, *, num_classes: int, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return a batch in which one box of each clip's frames is another clip's (Yun et al., 2019), by ``CutMix``.

    Args:
        clips: ``[B, T, C, H, W]``, uint8 or floating point.
        labels: Classes ``[B]``, int64, or their probabilities ``[B, K]``.
        num_classes: Number of classes, K.
        alpha: Parameter of the Beta distribution from which the area of the one box of the batch is drawn.

    Returns:
        The clips, and the probabilities of their classes ``[B, K]``, float32, which ``cross_entropy`` accepts.

    Raises:
        InputError: The clips or labels are of another kind or shape.
        ConfigError: ``num_classes`` or ``alpha`` is out of range.
    """
    _require_batch(clips, labels)
    return _mixed(v2.CutMix, clips, labels, num_classes=num_classes, alpha=alpha)


def _require_batch(clips: Any, labels: Any) -> None:
    if not isinstance(clips, Tensor) or clips.ndim != 5:
        got = list(clips.shape) if isinstance(clips, Tensor) else type(clips).__name__
        raise InputError(f"clips must be a batch [B, T, C, H, W], got {got}")
    shape = tuple(labels.shape) if isinstance(labels, Tensor) else None
    fits = shape is not None and shape[:1] == clips.shape[:1] and len(shape) in (1, 2)
    if not fits or (len(shape or ()) == 1 and labels.dtype != torch.int64):
        got = f"{list(labels.shape)} of {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(f"labels must be classes [{len(clips)}], int64, or probabilities [{len(clips)}, K], got {got}")


def _mixed(kind: Any, clips: Tensor, labels: Tensor, *, num_classes: int, alpha: float) -> tuple[Tensor, Tensor]:
    num_classes = require_integer("num_classes", num_classes, low=1)
    alpha = require_number("alpha", alpha, low=0.0, open_low=True)
    if labels.ndim == 2 and labels.shape[1] != num_classes:
        raise InputError(f"labels must be probabilities of num_classes={num_classes} classes, got {list(labels.shape)}")
    # Of labels on a GPU nothing is read, which would wait for it.
    if labels.ndim == 1 and labels.is_cpu and len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        got = f"{int(labels.min())} to {int(labels.max())}"
        raise InputError(f"labels must be classes from 0 to num_classes - 1 = {num_classes - 1}, got {got}")
    mixed, probabilities = kind(alpha=alpha, num_classes=num_classes)(tv_tensors.Video(clips), labels)
    return mixed.as_subclass(Tensor), probabilities
