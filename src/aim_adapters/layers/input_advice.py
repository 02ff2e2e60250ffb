"""Advice for whoever gave a model something that is not a video it reads: what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_PIL = "torchvision.transforms.functional.pil_to_tensor"


def advise_type(video: Any) -> str:
    """Return how to make a tensor of something else.

    Args:
        video: What was given instead of a tensor.
    """
    if video is None:
        return "nothing was given: where the model takes text first, pass the video by its name (pixel_values=video)"
    if isinstance(video, (str, Path)):
        return "decode the file first, and stack its frames to [B, T, C, H, W]"
    if isinstance(video, Mapping):
        return f"pass one of its entries, such as video['pixel_values'], out of {', '.join(map(str, video))}"
    if isinstance(video, (list, tuple)) and len(video):
        return {
            "numpy": "stack it: torch.from_numpy(numpy.stack(video))",
            "PIL": f"stack its frames: torch.stack([{_PIL}(frame) for frame in video])",
        }.get(_library_of(video[0]), "stack it, if its items are tensors of one shape: torch.stack(video)") + _THEN
    return {
        "numpy": "make it one: torch.from_numpy(video)",
        "PIL": f"a single image is no clip: stack all frames, torch.stack([{_PIL}(frame) for frame in frames])",
    }.get(_library_of(video), "make it one: [B, T, C, H, W]") + _THEN


def advise_dtype(dtype: torch.dtype, mean: Sequence[float] | None, std: Sequence[float] | None) -> str:
    """Return how to make normalized pixels of a tensor that is not floating point.

    Args:
        dtype: Its dtype.
        mean: Mean of each channel by which the model's images are normalized, for pixels in [0, 1]; None: unknown.
        std: Standard deviation of each channel, likewise.
    """
    scaled = "video / 255" if dtype == torch.uint8 else "pixels in [0, 1]"
    return f"convert it: ({scaled} - mean) / std, {normalization(mean, std)}"


def normalization(mean: Sequence[float] | None, std: Sequence[float] | None) -> str:
    """Return a model's mean and std in words, for pixels in [0, 1].

    Args:
        mean: Mean of each channel, or None: unknown.
        std: Standard deviation of each channel, likewise.
    """
    if mean is None or std is None:
        return "with the mean and std of the images that the model was trained on"
    mean_text, std_text = (", ".join(f"{value:.6g}" for value in values) for values in (mean, std))
    return f"with this model's mean ({mean_text}) and std ({std_text}), each torch.tensor(...).view(-1, 1, 1)"


def advise_shape(shape: Sequence[int], *, num_frames: int, channels: int, layout: str) -> str:
    """Return what to do about a shape that is none of a video.

    Args:
        shape: The shape.
        num_frames: Frames per clip that the model reads.
        channels: Channels that it reads.
        layout: ``"auto"``, or the layout of 5-D input that it was wrapped for.
    """
    known = {3: _advise_3d, 4: _advise_4d, 5: _advise_5d}.get(len(shape))
    advice = "several views of a clip count as clips: video.flatten(0, 1)" if len(shape) == 6 else None
    if known is not None:
        advice = known(shape, num_frames, channels)
    if len(shape) == 5 and layout != "auto" and {shape[1], shape[2]} == {num_frames, channels}:
        advice = f"the model was wrapped with input_layout={layout!r}: pass video.transpose(1, 2)"
    return advice or f"bring it to [B, {num_frames}, {channels}, H, W]"


def advise_frames(got: int, num_frames: int) -> str:
    """Return what to do about a clip of another length.

    Args:
        got: Frames that it has.
        num_frames: Frames per clip that the model reads.
    """
    if got < 1:
        return "the clip has no frames: see why it was decoded to none"
    how = f"sample {num_frames} of" if got > num_frames else "repeat some of"
    return f"{how} its {got} frames, or call aim.set_num_frames(model, {got})"


def _advise_5d(shape: Sequence[int], num_frames: int, channels: int) -> str | None:
    if channels not in (shape[1], shape[2]) and shape[4] == channels:
        return "channels are last: pass video.permute(0, 1, 4, 2, 3)"
    if shape[0] == num_frames and shape[2] == channels:
        return "frames are first: pass video.transpose(0, 1)"
    if channels in (shape[1], shape[2]):
        return advise_frames(shape[1] if shape[2] == channels else shape[2], num_frames)
    frames_first = shape[1] == num_frames
    count = shape[2] if frames_first else shape[1]
    if count == 1:
        sizes = f"-1, -1, {channels}, -1, -1" if frames_first else f"-1, {channels}, -1, -1, -1"
        return f"of gray frames, repeat the channel: video.expand({sizes})"
    if count == channels + 1:
        return f"leave out the alpha channel: video[:, {':, ' if frames_first else ''}:{channels}]"
    return None


def _advise_4d(shape: Sequence[int], num_frames: int, channels: int) -> str | None:
    if shape[1] == channels:
        return f"pass whole clips of {num_frames} frames each, or call aim.set_num_frames(model, N) for clips of N"
    if shape[0] == channels and shape[1] == num_frames:
        return "of one clip [C, T, H, W], pass video[None]"
    if shape[3] == channels:
        return "channels are last: pass video.permute(0, 3, 1, 2)"
    if shape[1] == num_frames:
        return f"of gray clips [B, T, H, W], pass video[:, :, None].expand(-1, -1, {channels}, -1, -1)"
    if shape[1] == 1:
        return f"of gray frames, repeat the channel: video.expand(-1, {channels}, -1, -1)"
    return f"leave out the alpha channel: video[:, :{channels}]" if shape[1] == channels + 1 else None


def _advise_3d(shape: Sequence[int], num_frames: int, channels: int) -> str:
    return f"a single image is no clip: stack {num_frames} frames to [1, {num_frames}, {channels}, H, W]"


def _library_of(value: Any) -> str:
    return "torch" if isinstance(value, Tensor) else type(value).__module__.partition(".")[0]


_THEN = "; then normalize its pixels"
