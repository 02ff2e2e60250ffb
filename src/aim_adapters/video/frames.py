"""Checks of decoded frames."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aim_adapters.errors import InputError


def require_frames(frames: Any) -> None:
    """Refuse what are not the decoded frames of one clip.

    Args:
        frames: uint8 ``[T, 3, h, w]``.

    Raises:
        InputError: They are of another kind, or have another layout.
    """
    require_uint8(frames)
    if advice := advise_shape(frames):
        raise InputError(f"frames of a clip must be [T, 3, h, w], got {list(frames.shape)}; {advice}")


def advise_shape(frames: Tensor) -> str | None:
    """Return what to do about frames that are not ``[T, 3, h, w]``, or None if they are.

    Args:
        frames: A tensor.
    """
    shape = list(frames.shape)
    if frames.ndim == 4 and shape[1] == 3 and frames.numel():
        return None
    if frames.ndim == 5:
        return "pass each clip by itself"
    if frames.ndim == 3:
        return "of a single frame, pass frame[None]"
    if frames.ndim == 4 and shape[3] == 3 and frames.numel():
        return "channels are last: pass frames.permute(0, 3, 1, 2)"
    if frames.ndim == 4 and shape[0] == 3:
        return "channels are first: pass frames.transpose(0, 1)"
    if frames.ndim == 4 and shape[1] == 1:
        return "of gray frames, repeat the channel: frames.expand(-1, 3, -1, -1)"
    if frames.ndim == 4 and shape[1] == 4:
        return "leave out the alpha channel: frames[:, :3]"
    return "bring them to [T, 3, h, w]"


def require_uint8(frames: Any) -> None:
    """Refuse what is no tensor of bytes, pixels from 0 to 255.

    Args:
        frames: uint8, of any shape.

    Raises:
        InputError: It is something else.
    """
    if not isinstance(frames, Tensor):
        numpy = type(frames).__module__.partition(".")[0] == "numpy"
        advice = "torch.from_numpy(frames)" if numpy else "torch.stack of a video's frames, or open_video(...)"
        raise InputError(f"frames must be a torch.Tensor, got {type(frames).__name__}; make it one by {advice}")
    if frames.dtype != torch.uint8:
        floating = frames.is_floating_point()
        advice = "(255 * frames).round().to(torch.uint8) for pixels in [0, 1]; already normalized frames cannot be used"
        raise InputError(
            f"frames must be uint8, pixels from 0 to 255 as decoded, got {frames.dtype}; "
            + (f"pass {advice}" if floating else "pass frames.to(torch.uint8) for pixels from 0 to 255")
        )
