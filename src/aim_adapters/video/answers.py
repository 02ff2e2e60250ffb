"""Probabilities of classes for views of videos: what evaluation and prediction share."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from aim_adapters.arguments import require_choice, require_string, shown
from aim_adapters.clip_spec import ClipSpec, clip_spec
from aim_adapters.core import find_roots, is_wrapped, only_root
from aim_adapters.errors import ConfigError, InputError, StateError
from aim_adapters.video.normalization import Normalize

# Clips of one pass. It is always the same number, so that products of the same shape compute each clip, whatever else
# is evaluated with it and wherever: no digit of a result depends on batch size or number of processes.
CLIPS = 8
PRECISIONS = ("fp32", "bf16", "fp16", "fp8")


class Answerer:
    """A model that gives the probabilities of its classes for uint8 clips, always in passes of `CLIPS`.

    Args:
        model: The model.
        spec: What it reads.
        device: Where it is.
        precision: Precision of products, or None: as the caller's own autocast says.
    """

    def __init__(self, model: nn.Module, spec: ClipSpec, *, device: torch.device, precision: str | None) -> None:
        if precision is not None:
            require_choice("precision", precision, PRECISIONS)
        self.model, self.device, self.precision = model, device, precision
        self.normalize = Normalize(spec.mean, spec.std).to(device)

    def __call__(self, clips: Tensor) -> Tensor:
        """Return the probabilities of the classes, float64 ``[n, K]`` on the CPU.

        Args:
            clips: uint8 ``[n, T, 3, H, W]``, n from 1 to `CLIPS`, on the CPU.
        """
        count = len(clips)
        if count < CLIPS:
            clips = torch.cat([clips, clips[-1:].expand(CLIPS - count, *clips.shape[1:])])
        if self.device.type == "cuda":
            clips = clips.pin_memory()
        video = self.normalize(clips.to(self.device, non_blocking=True))  # [CLIPS, T, C, H, W]
        try:
            with self._autocast():
                output = self.model(video)
        except (RuntimeError, TypeError, ValueError) as error:
            if is_wrapped(self.model):
                raise
            raise InputError(
                f"model, a {type(self.model).__name__}, cannot read videos {list(video.shape)}: {error!s:.300}; pass a "
                "wrapped model, or one that maps [B, T, C, H, W] to [B, K]"
            ) from error
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != CLIPS:
            got = list(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
            raise StateError(
                f"the model must return logits [B, K] for a video [B, T, C, H, W], got {got} for {list(video.shape)}; "
                "wrap it with labels=[...] or num_classes=K"
            )
        return logits[:count].double().softmax(1).cpu()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision is None:
            return contextlib.nullcontext()
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32")


@contextlib.contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, without gradients, and put each part back into the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    # Layout and normalization are known here, and views of one video may look like frames in the wrong order.
    states = [wrapped.state for wrapped in find_roots(model)] if is_wrapped(model) else []
    unseen = [state.unseen for state in states]
    for state in states:
        state.unseen = False
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for state, before in zip(states, unseen, strict=True):
            state.unseen = before
        for module in training:
            module.training = True


def spec_of(model: Any, spec: ClipSpec | None) -> ClipSpec:
    """Return what a model reads.

    Args:
        model: The model.
        spec: What the caller says of it, or None.

    Raises:
        TypeError: ``model`` is no module, or ``spec`` no `ClipSpec`.
        StateError: The model has no classes, or its adapters are disabled.
        ConfigError: The model does not say its normalization.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if spec is not None and not isinstance(spec, ClipSpec):
        raise TypeError(f"spec must be a ClipSpec or None, got {shown(spec)}")
    if is_wrapped(model) and only_root(model).state.classifier("head") is None:
        raise StateError("the model has no classes: it returns features; wrap it with labels=[...]")
    return clip_spec(model) if spec is None else spec


def device_of(model: nn.Module) -> torch.device:
    """Return the device that a model is on.

    Args:
        model: The model.
    """
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def place_on(model: nn.Module, device: str | torch.device | None) -> None:
    """Move a model to a device.

    Args:
        model: The model.
        device: The device; None: it stays where it is.

    Raises:
        ConfigError: There is no such device.
    """
    if device is None:
        return
    try:
        model.to(torch.device(device))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # AssertionError: PyTorch has no CUDA
        raise ConfigError(f"device must be one that is here, such as 'cpu' or 'cuda', got {shown(device)}") from error


def parse_views(views: str) -> tuple[int, int]:
    """Return the clips in time and the crops in space of ``"3x1"``.

    Args:
        views: The text.

    Raises:
        ConfigError: It is another one.
    """
    text = require_string("views", views, expected="clips in time x crops in space, such as '3x1'")
    found = re.fullmatch(r"([1-9]\d{0,2})x([1-9]\d?)", text)
    if found is None:
        raise ConfigError(f"views must be clips in time x crops in space, such as '3x1' or '1x3', got {shown(text)}")
    return int(found[1]), int(found[2])
