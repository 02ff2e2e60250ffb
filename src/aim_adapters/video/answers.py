"""Probabilities of classes for views of videos: what evaluation and prediction share."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from aim_adapters.arguments import require_choice, require_string, shown
from aim_adapters.clip_spec import ClipSpec, clip_spec
from aim_adapters.core import find_roots, is_wrapped, only_root
from aim_adapters.errors import ConfigError, InputError, StateError
from aim_adapters.video.normalization import Normalize

# Clips of one pass of an evaluation.
CLIPS = 8
PRECISIONS = ("fp32", "bf16", "fp16")


class Answerer:
    """A model that gives the probabilities of its classes for clips.

    Args:
        model: The model.
        spec: What it reads.
        device: Where the model is moved before; None: it stays where it is.
        precision: Precision of products, or None: as the caller's own autocast says.
        normalize: Normalization of uint8 clips; by default as ``spec`` says.

    Raises:
        ConfigError: ``device`` or ``precision`` is invalid.
        StateError: The model has no weights.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: ClipSpec,
        *,
        device: str | torch.device | None,
        precision: str | None,
        normalize: Normalize | None = None,
    ) -> None:
        if precision is not None:
            require_choice("precision", precision, PRECISIONS)
        self.device = _placed(model, device)
        self.model, self.spec, self.precision = model, spec, precision
        # A copy, as that of a dataset is sent to worker processes.
        self.normalize = (Normalize(spec.mean, spec.std) if normalize is None else deepcopy(normalize)).to(self.device)
        self.shape = (spec.frames, len(spec.mean), *spec.image_size)  # of a clip
        weights = (p.dtype for p in model.parameters() if p.is_floating_point() and p.ndim > 1)
        self._dtype = next(weights, torch.float32)

    def __call__(self, clips: Sequence[Tensor]) -> Tensor:
        """Return the probabilities of the classes, float64 ``[n, K]``, on the model's device if it has this type.

        Args:
            clips: n clips ``[T, C, H, W]``, of one dtype: uint8; or floating point, which are normalized already.

        Raises:
            InputError: The model, which is not a wrapped one, cannot read them.
            StateError: The model returns something else than classes, or not as many as they have names.
        """
        # From pinned memory, they are not waited for.
        video = torch.stack([clip.to(self.device, non_blocking=True) for clip in clips])  # [n, T, C, H, W]
        if video.dtype == torch.uint8:
            video = self.normalize(video)
        try:
            with self._autocast():
                casts = torch.is_autocast_enabled(self.device.type)
                output = self.model(video.float() if casts else video.to(self._dtype))
        except (RuntimeError, TypeError, ValueError) as error:
            if is_wrapped(self.model) or isinstance(error, torch.OutOfMemoryError):
                raise
            raise InputError(
                f"model, a {type(self.model).__name__}, cannot read videos {list(video.shape)}: {error!s:.300}; pass a "
                "wrapped model, or one that maps [B, T, C, H, W] to [B, K]"
            ) from error
        output = output[0] if isinstance(output, tuple) else getattr(output, "logits", output)
        if not (isinstance(output, Tensor) and output.is_floating_point() and output.ndim == 2) or (
            output.shape[0] != len(clips) or not output.shape[1]
        ):
            got = f"{output.dtype} {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise StateError(
                f"the model must return logits [B, K] for a video [B, T, C, H, W], got {got} for {list(video.shape)}; "
                "wrap it with labels=[...] or num_classes=K"
            )
        labels = self.spec.labels
        if labels is not None and len(labels) != output.shape[1]:
            raise StateError(
                f"the model returns {output.shape[1]} classes, and {len(labels)} have names: {shown(list(labels))}; "
                "wrap it with labels=[...] of this task, or name all of its classes"
            )
        if self.device.type == "mps":  # which has no float64
            output = output.cpu()
        return output.double().softmax(1)  # a copy: a captured model writes its next output into the same memory

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision is None:
            return contextlib.nullcontext()
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32")


@contextlib.contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, without gradients, and put each part back into the mode that it was in.

    So is PyTorch's random number generator, from which a dataset may draw.
    """
    training = [module for module in model.modules() if module.training]
    # Layout and normalization are known here, and views of one video may look like frames in the wrong order.
    states = [wrapped.state for wrapped in find_roots(model)] if is_wrapped(model) else []
    unseen = [state.unseen for state in states]
    for state in states:
        state.unseen = False
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
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
    if is_wrapped(model):
        state = only_root(model).state
        if not state.enabled and state.config.num_classes is not None:
            raise StateError(
                "adapters are disabled, and the image model has other classes; leave disable_adapters first"
            )
        if spec is None and state.classifier("head") is None:
            raise StateError(
                "the model has no classes: it returns features; wrap it with labels=[...], or pass spec= if a layer of "
                "your own classifies them"
            )
    return clip_spec(model) if spec is None else spec


def _placed(model: nn.Module, device: str | torch.device | None) -> torch.device:
    """Return the device of a model, after it was moved there."""
    if device is None:
        found = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    else:
        try:  # before the model is touched
            found = torch.empty(0, device=device).device
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"device must be one that is here, such as 'cpu' or 'cuda', got {shown(device)}"
            ) from error
    if found.type == "meta":
        raise StateError("the model would be on the meta device, where it has no weights; move it to a real one")
    if device is not None:
        model.to(found)
    return found


def parse_views(views: str) -> tuple[int, int]:
    """Return the clips in time and the crops in space of ``"3x1"``.

    Args:
        views: The text.

    Raises:
        ConfigError: It is another one.
    """
    text = require_string("views", views, expected="clips in time x crops in space, such as '3x1'")
    found = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", text)
    if found is None:
        raise ConfigError(f"views must be clips in time x crops in space, such as '3x1' or '1x3', got {shown(text)}")
    return int(found[1]), int(found[2])
