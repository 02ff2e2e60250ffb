"""Compute the features of a long video clip by clip, in memory that does not grow with its length."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from aim_adapters.core import RootState, only_root, outermost_path, without_classifiers
from aim_adapters.errors import ConfigError, InputError, StateError, UnsupportedModelError


def extract_features(
    model: nn.Module, video: Tensor | Iterable[Tensor], *, stride: int | None = None, batch_size: int = 8
) -> Tensor:
    """Return what the classification layer reads of every clip of a video.

    Clips of ``num_frames`` frames start every ``stride`` frames. If frames are left over behind the last of them, one
    more clip ends with the last frame. Frames go to the model's device clip by clip, each of them once, also where
    clips overlap; every clip is computed by itself. Neither a whole video nor its activations are ever there at once.

    The model runs in evaluation mode and ``torch.inference_mode``; autocast is the caller's.

    Args:
        model: A wrapped model. Of a whole CLIP model, the image tower runs.
        video: One video's frames ``[S, C, H, W]``, S >= ``num_frames``, floating point and normalized, on any device.
            Or an iterable, as a decoder's generator, of frames ``[C, H, W]`` or chunks of them ``[n, C, H, W]``: it is
            read once and only as far as the next clips need. What it yields may be read later, so it must not write
            into the same memory again.
        stride: Frames from the start of a clip to the start of the next; by default ``num_frames``.
        batch_size: Clips computed at once.

    Returns:
        ``[clips, D]``, on the model's device: features averaged over the frames of each clip. Where the image model has
        no classification layer they are its output (an embedding), of a model of transformers ``image_embeds`` or
        ``pooler_output``; where it has two, with a distillation token, the mean of what both read.

    Raises:
        ConfigError: ``stride`` or ``batch_size`` is not an integer >= 1.
        InputError: The frames' shape or dtype does not fit, or they are fewer than ``num_frames``.
        StateError: The model is not wrapped, holds several wrapped models, or its adapters are disabled.
        UnsupportedModelError: The model reads patches cut beforehand, keeps a classification layer that is not linear,
            or returns nothing that is pooled over tokens.
    """
    path, root, state = only_root(model)
    num_frames, anatomy = state.config.num_frames, state.anatomy
    stride = num_frames if stride is None else _at_least_one("stride", stride)
    batch_size = _at_least_one("batch_size", batch_size)
    _require_features(root, state)
    frames = _Frames(video, anatomy.in_channels)
    called, device = model.get_submodule(outermost_path(path)), next(root.parameters()).device
    clips, found = _clips(frames, num_frames, stride, device), []
    with _evaluating(called), torch.inference_mode(), without_classifiers(state):
        while batch := list(islice(clips, batch_size)):
            out = called(**{anatomy.input_name: torch.cat(batch)})
            # A copy: CUDA graphs write the next batch's output into the same memory.
            found.append(_pooled(out, anatomy.pooled_outputs).clone())
            del batch, out  # before the next frames come
    return torch.cat(found)  # outside of inference mode, so that a probe can be trained on it


class _Frames:
    """Read frames in the order they come, as slices of what they come in.

    Args:
        video: What `extract_features` takes.
        channels: C.
    """

    def __init__(self, video: Any, channels: int) -> None:
        if not isinstance(video, Iterable):
            raise InputError(f"a video must be a torch.Tensor or an iterable of them, got {type(video).__name__}")
        if isinstance(video, Tensor) and video.ndim != 4:
            raise InputError(f"extract_features takes the frames of one video, [S, C, H, W], got {list(video.shape)}")
        self.chunks = iter([video] if isinstance(video, Tensor) else video)
        self.channels = channels
        self.size: torch.Size | None = None
        self.rest: Tensor | None = None

    def take(self, count: int) -> Iterator[Tensor]:
        """Yield the next ``count`` frames, fewer at the end, in slices ``[n, C, H, W]``."""
        while count:
            if self.rest is None or not len(self.rest):
                self.rest = None  # let go of it before the next is made
                if (chunk := next(self.chunks, None)) is None:
                    return
                self.rest = self._checked(chunk)
            taken, self.rest = self.rest[:count], self.rest[count:]
            count -= len(taken)
            yield taken

    def _checked(self, chunk: Any) -> Tensor:
        if not isinstance(chunk, Tensor) or not chunk.is_floating_point():
            got = chunk.dtype if isinstance(chunk, Tensor) else type(chunk).__name__
            raise InputError(f"frames must be floating-point tensors, normalized, got {got}; convert them first")
        frames = chunk[None] if chunk.ndim == 3 else chunk
        if frames.ndim != 4 or frames.shape[1] != self.channels:
            raise InputError(
                f"frames must be [C, H, W] or [n, C, H, W] with {self.channels} channels, got {list(chunk.shape)}"
            )
        self.size = self.size or frames.shape[1:]
        if frames.shape[1:] != self.size:
            raise InputError(f"all frames must have one size, got {list(self.size)} and then {list(frames.shape[1:])}")
        return frames


def _clips(frames: _Frames, num_frames: int, stride: int, device: torch.device) -> Iterator[Tensor]:
    """Yield clips ``[T, C, H, W]`` on a device."""

    def moved(slices: Iterable[Tensor]) -> list[Tensor]:
        return [each.to(device, non_blocking=True) for each in slices]

    fresh = min(stride, num_frames)  # what a clip has that the one in front of it does not have
    first = moved(frames.take(num_frames))
    if (count := sum(map(len, first))) < num_frames:
        raise InputError(f"a clip has {num_frames} frames, got a video of {count}; repeat frames, or set_num_frames")
    clip = torch.cat(first)
    del first
    while True:
        yield clip
        # Of frames between clips the last are kept, as the video may end there.
        single = (frame for each in frames.take(stride - fresh) for frame in each.split(1))
        between = deque(single, maxlen=num_frames)
        new = moved(frames.take(fresh))
        count = sum(map(len, new))
        if count < fresh:
            if between or new:
                yield torch.cat([clip, *moved(between), *new])[-num_frames:]
            return
        clip = torch.cat([clip[fresh:], *new])
        del between, new


def _pooled(out: Any, pooled_outputs: tuple[str, ...]) -> Tensor:
    """Return the features among a model's outputs."""
    if isinstance(out, tuple):
        out = out[0]
    if isinstance(out, Tensor):
        return out
    # The mean over several classification layers comes first, then the last step of pooling that there is.
    for name in ("logits", *reversed(pooled_outputs)):
        if isinstance(found := getattr(out, name, None), Tensor):
            return found
    raise UnsupportedModelError(
        f"this model returns a {type(out).__name__} without {' or '.join(pooled_outputs)}: it pools nothing over "
        "tokens; load it with its pooling layer"
    )


def _require_features(root: nn.Module, state: RootState) -> None:
    """Refuse a model that has no features, or would return something else."""
    anatomy = state.anatomy
    if not state.enabled:
        raise StateError("extract_features: adapters are disabled; leave disable_adapters first")
    if anatomy.patch_inputs:
        raise UnsupportedModelError(
            f"this {type(root).__name__} reads patches cut beforehand, not frames; call it on the patches of each clip"
        )
    for head in anatomy.heads:
        own = root.get_submodule(head.path)
        kept = head.classifier and state.config.num_classes is None and state.classifier(head.name) is None
        if kept and not isinstance(own, nn.Identity):
            raise UnsupportedModelError(
                f"the classification layer {head.path!r} is a {type(own).__name__}, not one linear layer, and runs on "
                "each frame; wrap the model with num_classes=0 for features"
            )


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode for a while, and each of its modules back as it was."""
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True


def _at_least_one(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be an integer >= 1, got {value!r}")
    return value
