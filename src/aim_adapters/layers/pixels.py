"""Signs that the frames of a batch are not what a model was trained on: pixels not normalized, frames out of order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aim_adapters.layers.input_advice import normalization

# Normalized by ImageNet's mean and std, pixels lie in [-2.2, 2.7]; noise and augmentation reach a little further.
_FAR = 10.0
# How much more alike frames must be in the other order. Frames of one clip differ far less than those of two.
_MARGIN = 4.0
_SIDE = 32  # rows and columns of a frame that are looked at


class _Signs(NamedTuple):
    low: float
    high: float
    neighbors: float  # mean squared difference of frames that stand next to one another within a clip
    strided: float  # the same, of frames that would stand there if the batch were [T*B]


def suspicions(
    frames: Tensor, *, num_frames: int, mean: Sequence[float] | None, std: Sequence[float] | None, reorder: str | None
) -> list[str]:
    """Return what seems wrong with the frames of a batch, each with what to do.

    One transfer from the frames' device; meant for one batch, not for all.

    Args:
        frames: ``[B*T, C, H, W]``, floating point.
        num_frames: Frames per clip T.
        mean: Mean of each channel by which the model's images are normalized, for pixels in [0, 1]; None: unknown.
        std: Standard deviation of each channel, likewise.
        reorder: What brings frames from the order ``[T, B]`` to ``[B, T]``; None: the video's shape leaves no doubt.
    """
    if not frames.numel():
        return []
    low, high, neighbors, strided = _signs(frames.detach(), num_frames)
    found, reach = [], f"the pixels of this batch reach from {low:.3g} to {high:.3g}"
    bounds = [abs(x) for m, s in zip(mean or (), std or (), strict=False) for x in (m / s, (1 - m) / s)]
    if max(-low, high) > max(_FAR, 3 * max(bounds, default=0.0)):
        found.append(
            f"{reach}, far outside of what normalized pixels can be; pass (video / 255 - mean) / std, "
            + normalization(mean, std)
        )
    elif low >= 0 and high > low and (mean is None or min(mean) > 0):
        found.append(
            f"{reach}, and none is negative, as if they were not normalized; pass (video - mean) / std of pixels in "
            f"[0, 1], {normalization(mean, std)}"
        )
    if reorder is not None and 0 < _MARGIN * strided < neighbors:
        clips = len(frames) // num_frames
        found.append(
            f"the frames of this batch seem to stand in the order [T, B], not [B, T]: frames {clips} apart are alike, "
            f"those next to one another are not; pass {reorder}"
        )
    return found


def _signs(frames: Tensor, num_frames: int) -> _Signs:
    rows, columns = (max(side // _SIDE, 1) for side in frames.shape[2:])
    seen = frames[:, :, ::rows, ::columns].float()
    low, high = seen.aminmax()
    clips = len(frames) // num_frames
    if clips < 2 or num_frames < 2:
        return _Signs(low.item(), high.item(), 0.0, 0.0)
    in_clips = seen.unflatten(0, (clips, num_frames))
    in_turns = seen.unflatten(0, (num_frames, clips))  # if the batch were [T*B]
    neighbors, strided = in_clips.diff(dim=1).square().mean(), in_turns.diff(dim=0).square().mean()
    return _Signs(*torch.stack([low, high, neighbors, strided]).tolist())
