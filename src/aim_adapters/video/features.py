"""The features of a long video, computed clip by clip in memory that does not grow with its length."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy
from aim_adapters.arguments import require_integer
from aim_adapters.core import RootState, evaluating, only_root, outermost_path, pooled_output, without_classifiers
from aim_adapters.errors import InputError, StateError, UnsupportedModelError
from aim_adapters.layers import advise_dtype, advise_type


def extract_features(
    model: nn.Module, video: Tensor | Iterable[Tensor], *, stride: int | None = None, batch_size: int = 8
) -> Tensor:
    """Return the features of every clip of a video: the input of the classification layer.

    Clips of ``num_frames`` frames start every ``stride`` frames. If frames remain after the last of them, one more clip
    ends with the last frame. Each frame is moved to the model's device once, also where clips overlap. Neither the
    whole video nor its activations are in memory at once.

    The model runs in evaluation mode and ``torch.inference_mode``; autocast is up to the caller.

    Args:
        model: A wrapped model. In a whole CLIP model, only the image tower runs.
        video: One video's frames ``[S, C, H, W]``, S >= ``num_frames``, floating point and normalized, on any device.
            Or an iterable (such as a decoder's generator) of frames ``[C, H, W]`` or chunks of frames ``[n, C, H, W]``.
            It is read once, and only as far as the next clips need. It must not overwrite tensors it has yielded, which
            may be read later.
        stride: Frames from the start of a clip to the start of the next; by default ``num_frames``.
        batch_size: Number of clips computed at once.

    Returns:
        ``[clips, D]``, on the model's device: features averaged over the frames of each clip. If the image model has no
        classification layer they are its output (an embedding; in transformers ``image_embeds`` or ``pooler_output``).
        If it has two (with a distillation token), they are the mean of both layers' inputs.

    Raises:
        TypeError: ``model`` is not a module.
        ConfigError: ``stride`` or ``batch_size`` is not an integer >= 1.
        InputError: The shape or dtype of the frames does not fit, or there are fewer than ``num_frames``.
        StateError: The model is not wrapped, holds several wrapped models, or its adapters are disabled.
        UnsupportedModelError: The model reads patches cut beforehand, keeps a classification layer that is not linear,
            or has no output pooled over tokens.
    """
    path, root, state = only_root(model)
    num_frames, anatomy = state.config.num_frames, state.anatomy
    stride = num_frames if stride is None else require_integer("stride", stride, low=1)
    batch_size = require_integer("batch_size", batch_size, low=1)
    _require_features(root, state)
    frames = _Frames(video, anatomy)
    called, device = model.get_submodule(outermost_path(path)), next(root.parameters()).device
    clips, features = _clips(frames, num_frames, stride, device), []
    with evaluating(called), torch.inference_mode(), without_classifiers(state):
        while batch := list(islice(clips, batch_size)):
            out = called(**{anatomy.input_name: torch.cat(batch)})
            # A copy: CUDA graphs write the next batch's output into the same memory.
            features.append(pooled_output(out, anatomy.pooled_outputs).clone())
            del batch, out  # freed before the next frames are read
    return torch.cat(features)  # outside of inference mode, so that a probe can be trained on it


class _Frames:
    """The frames of a video in order, as slices of the tensors that hold them.

    Args:
        video: As in `extract_features`.
        anatomy: The anatomy of the image model.

    Raises:
        InputError: ``video`` is neither the frames of one video nor an iterable.
    """

    def __init__(self, video: Any, anatomy: BackboneAnatomy) -> None:
        if not isinstance(video, Iterable) or getattr(video, "shape", None) == ():
            got = f"{type(video).__name__}; {advise_type(video)}"
            raise InputError(f"a video must be a torch.Tensor or an iterable of them, got {got}")
        if isinstance(video, Tensor) and video.ndim != 4:
            raise InputError(
                f"extract_features takes the frames of one video, [S, C, H, W], got {list(video.shape)}; call it for "
                "each video, such as video[0] of a [B, S, C, H, W]"
            )
        self.chunks = iter([video] if isinstance(video, Tensor) else video)
        self.channels, self.mean, self.std = anatomy.in_channels, anatomy.image_mean, anatomy.image_std
        self.size: torch.Size | None = None
        self.rest: Tensor | None = None

    def take(self, count: int) -> Iterator[Tensor]:
        """Yield the next ``count`` frames, fewer at the end, in slices ``[n, C, H, W]``.

        Args:
            count: Number of frames.

        Raises:
            InputError: The shape or dtype of a frame does not fit.
        """
        while count:
            if self.rest is None or not len(self.rest):
                self.rest = None  # freed before the next chunk is made
                if (chunk := next(self.chunks, None)) is None:
                    return
                self.rest = self._checked(chunk)
            taken, self.rest = self.rest[:count], self.rest[count:]
            count -= len(taken)
            yield taken

    def _checked(self, chunk: Any) -> Tensor:
        if not isinstance(chunk, Tensor) or not chunk.is_floating_point():
            is_tensor = isinstance(chunk, Tensor)
            advice = advise_dtype(chunk.dtype, self.mean, self.std) if is_tensor else advise_type(chunk)
            got = chunk.dtype if is_tensor else type(chunk).__name__
            raise InputError(f"frames must be floating-point tensors, normalized, got {got}; {advice}")
        frames = chunk[None] if chunk.ndim == 3 else chunk
        if frames.ndim != 4 or frames.shape[1] != self.channels:
            raise InputError(
                f"frames must be [C, H, W] or [n, C, H, W] with {self.channels} channels, got {list(chunk.shape)}; "
                "where channels are last, pass frames.movedim(-1, -3)"
            )
        self.size = self.size or frames.shape[1:]
        if frames.shape[1:] != self.size:
            raise InputError(
                f"all frames must have one size, got {list(self.size)} and then {list(frames.shape[1:])}; resize them"
            )
        return frames


def _clips(frames: _Frames, num_frames: int, stride: int, device: torch.device) -> Iterator[Tensor]:
    """Yield clips ``[T, C, H, W]`` on a device."""

    def moved(slices: Iterable[Tensor]) -> list[Tensor]:
        return [frames_slice.to(device, non_blocking=True) for frames_slice in slices]

    fresh = min(stride, num_frames)  # frames of a clip that the previous one does not have
    first = moved(frames.take(num_frames))
    if (count := sum(map(len, first))) < num_frames:
        raise InputError(f"a clip has {num_frames} frames, got a video of {count}; repeat frames, or set_num_frames")
    clip = torch.cat(first)
    del first
    while True:
        yield clip
        # The last of the frames between two clips are kept: the video may end there.
        single = (frame for frames_slice in frames.take(stride - fresh) for frame in frames_slice.split(1))
        between = deque(single, maxlen=num_frames)
        new = moved(frames.take(fresh))
        count = sum(map(len, new))
        if count < fresh:
            if between or new:
                yield torch.cat([clip, *moved(between), *new])[-num_frames:]
            return
        clip = torch.cat([clip[fresh:], *new])
        del between, new


def _require_features(root: nn.Module, state: RootState) -> None:
    """Refuse a model that has no features, or would return something else instead."""
    anatomy = state.anatomy
    if not state.enabled:
        raise StateError("extract_features: adapters are disabled; leave disable_adapters first")
    if anatomy.patch_inputs:
        raise UnsupportedModelError(
            f"this {type(root).__name__} reads patches cut beforehand, not frames; call it on the patches of each clip"
        )
    for head in anatomy.heads:
        layer = root.get_submodule(head.path)
        kept = head.classifier and state.config.num_classes is None and state.classifier(head.name) is None
        if kept and not isinstance(layer, nn.Identity):
            raise UnsupportedModelError(
                f"the classification layer {head.path!r} is a {type(layer).__name__}, not one linear layer, and runs "
                "on each frame; wrap the model with num_classes=0 for features"
            )
