"""Which frames of a video make a clip: pure functions on integers.

Two rules, each with a form for training, which draws from a generator, and one for testing, which does not, as the
configs of the paper's reference have them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aim_adapters.arguments import require_integer, shown
from aim_adapters.errors import ConfigError


def uniform_indices(total: int, frames: int, *, clips: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Choose one frame from each of ``frames`` equal segments of a video ("uniform" or segment-based sampling).

    In training each clip takes a random frame of each segment. In testing it takes the middle ones; of several clips
    the c-th takes those in the middle of the c-th part of each segment. Clips differ wherever segments are long enough.
    A video with fewer frames than a clip has some of them twice.

    Args:
        total: Frames of the video.
        frames: Frames of a clip, T.
        clips: How many clips.
        generator: Draws the frames for training; None: the rule for testing.

    Returns:
        ``int64 [clips, T]``, each row ascending, in [0, total).

    Raises:
        ConfigError: A number is not an integer >= 1, or ``generator`` is not a generator on the CPU.
    """
    total, frames, clips = _checked(total, frames, clips, generator)
    segments = torch.arange(frames)
    start = segments * total // frames
    length = ((segments + 1) * total // frames - start).clamp(min=1)
    if generator is not None:
        return start + _draw(length, clips, generator)  # [clips, T]
    parts = torch.arange(clips)[:, None]
    indices = (2 * (segments * clips + parts) + 1) * total // (2 * clips * frames)  # [clips, T]
    if total > frames and len(indices.unique(dim=0)) < clips:  # more clips than a segment has frames
        parts = (parts + (length > 1).cumsum(0)) % clips  # another part in each segment that has several
        indices = start + (2 * parts + 1) * length // (2 * clips)
    return indices


def dense_indices(
    total: int, frames: int, stride: int, *, clips: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Choose frames at a fixed distance from one another ("dense" sampling).

    A clip spans ``(frames - 1) * stride + 1`` frames. In training each clip starts at random; in testing the clips
    start in the middle of equal parts of all possible starts, so one clip is the middle of the video. Where a video is
    too short for clips that differ, the distance is reduced until there are, down to 1; where that is not enough, also
    where the video has fewer frames than a clip, it is sampled by `uniform_indices`.

    Args:
        total: Frames of the video.
        frames: Frames of a clip, T.
        stride: Distance between two frames of a clip, in frames of the video.
        clips: How many clips.
        generator: Draws the starts for training; None: the rule for testing.

    Returns:
        ``int64 [clips, T]``, each row ascending, in [0, total).

    Raises:
        ConfigError: A number is not an integer >= 1, or ``generator`` is not a generator on the CPU.
    """
    total, frames, clips = _checked(total, frames, clips, generator)
    stride = require_integer("stride", stride, low=1)
    if total < frames + clips - 1:
        return uniform_indices(total, frames, clips=clips, generator=generator)
    if frames > 1:
        stride = min(stride, (total - clips) // (frames - 1))
    starts = total - (frames - 1) * stride  # how many there are
    if generator is None:
        first = (2 * torch.arange(clips) + 1) * starts // (2 * clips)
    else:
        first = _draw(torch.tensor([starts]), clips, generator)[:, 0]
    return first[:, None] + torch.arange(frames) * stride  # [clips, T]


def _draw(limits: Tensor, clips: int, generator: torch.Generator) -> Tensor:
    """Draw integers in [0, limit), ``[clips, number of limits]``; those of several clips differ where they can."""
    drawn = (torch.rand(clips, len(limits), dtype=torch.float64, generator=generator) * limits).long()
    apart = torch.arange(clips)[:, None] * (limits // clips)
    return torch.where(limits >= clips, (drawn[:1] + apart) % limits, drawn)


def _checked(total: int, frames: int, clips: int, generator: Any) -> tuple[int, int, int]:
    if generator is not None and (not isinstance(generator, torch.Generator) or generator.device.type != "cpu"):
        raise ConfigError(f"generator must be a torch.Generator on the CPU, or None, got {shown(generator)}")
    return (
        require_integer("total", total, low=1),
        require_integer("frames", frames, low=1, high=2**16),
        require_integer("clips", clips, low=1, high=2**10),
    )
