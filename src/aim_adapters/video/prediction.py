"""What a model says of one video, or of a folder of videos."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from aim_adapters.arguments import require_integer
from aim_adapters.clip_spec import ClipSpec
from aim_adapters.errors import InputError, StateError, VideoError, warn
from aim_adapters.video.answers import CLIPS, Answerer, answering, parse_views, spec_of
from aim_adapters.video.clips import ClipReader
from aim_adapters.video.datasets import content_of, user_path
from aim_adapters.video.decoding import PICTURE_EXTENSIONS
from aim_adapters.video.frames import advise_shape
from aim_adapters.video.sampling import dense_indices, uniform_indices
from aim_adapters.video.transforms import ClipTransform

Prediction = list[tuple[str, float]]


def predict(
    model: nn.Module,
    source: str | os.PathLike[str] | bytes | IO[bytes] | Tensor | Any,
    top: int = 5,
    *,
    views: str = "3x1",
    device: str | torch.device | None = None,
    precision: str | None = None,
    spec: ClipSpec | None = None,
) -> Prediction | dict[str, Prediction]:
    """Classify a video: the most probable classes, averaged over views as in the paper's test.

    Args:
        model: A wrapped model, such as `load_video_model` returns; or another module that maps ``[B, T, C, H, W]`` to
            ``[B, K]``, with ``spec``. It is left in the mode that it was in.
        source: A video as `open_video` takes it: a path, bytes, a file object, or a folder of pictures; or all frames
            of a video as a tensor or array, uint8 ``[S, 3, H, W]`` or ``[S, H, W, 3]``. Or a folder of videos, also in
            folders of its own.
        top: How many classes.
        views: Clips in time x crops in space; more see more of the video, and cost as much more.
        device: Where the model is moved before; by default it stays where it is.
        precision: As in `evaluate`.
        spec: What the model reads, if it does not say so itself.

    Returns:
        Names and probabilities of the classes, the most probable first; a class without a name is called by its index.
        Of a folder of videos, a dictionary of these by the path below the folder; videos that cannot be read are warned
        about and left out.

    Raises:
        TypeError: ``model`` is no module, or ``source`` is of another kind.
        ConfigError: A setting is invalid.
        InputError: A tensor or array is no video.
        StateError: The model returns no classes, others than have names, or values that are not finite.
        VideoError: The video cannot be read, or none of a folder can.
    """
    spec = spec_of(model, spec)
    top = require_integer("top", top, low=1)
    clips, crops = parse_views(views)
    if isinstance(source, (Tensor, np.ndarray)):
        source = _frames(source)  # before the model is moved
    videos = list_videos(source)
    answerer = Answerer(model, spec, device=device, precision=precision)
    transform = ClipTransform(spec.image_size, crops=crops)
    reader = ClipReader(spec.frames, stride=spec.stride, clips=clips, transform=transform)

    def classify(video: Tensor, name: str) -> Prediction:
        parts = [answerer(part) for part in video.split(CLIPS)]
        probabilities = torch.cat(parts).mean(0).cpu()
        if not probabilities.isfinite().all():
            raise StateError(f"the model returns values that are not finite for {name}")
        values, indices = probabilities.sort(descending=True, stable=True)
        names = spec.labels or tuple(map(str, range(len(probabilities))))
        return [
            (names[index], value) for index, value in zip(indices[:top].tolist(), values[:top].tolist(), strict=True)
        ]

    with answering(model):
        if not videos:
            return classify(read_views(source, reader), "the video")
        found = {}
        for path in videos:
            try:
                views_read = read_views(path, reader)
            except VideoError as error:
                warn(f"{error}; it is left out")
            else:
                name = path.relative_to(user_path("source", source)).as_posix()
                found[name] = classify(views_read, name)
        if not found:
            raise VideoError(f"{source!s}: none of its {len(videos)} videos can be read")
        return found


def read_views(source: Any, reader: ClipReader) -> Tensor:
    """Return the views of one video, uint8 ``[V, T, 3, H, W]``.

    Args:
        source: A video, as `predict` takes it.
        reader: How its views are read; with a transform that leaves them uint8.

    Raises:
        InputError: A tensor or array is no video.
        VideoError: The video cannot be read.
    """
    if isinstance(source, (Tensor, np.ndarray)):
        return _views_of(_frames(source), reader)
    return _together(reader.read(source))


def _together(views: Tensor) -> Tensor:
    """Return views ``[V, T, 3, H, W]``."""
    return views[None] if views.ndim == 4 else views


def list_videos(source: object) -> list[Path]:
    """Return the videos of a folder and of those below it; none if it is one of pictures, or no folder.

    Args:
        source: What `predict` takes.
    """
    if not isinstance(source, (str, os.PathLike)) or (isinstance(source, str) and not source):
        return []
    try:
        folder = user_path("source", source)
        if not folder.is_dir():
            return []
        content = content_of(folder)
    except (OSError, ValueError):  # `open_video` says what is wrong with it
        return []
    videos = [folder / name for name in content.videos + content.nested]
    if any(Path(name).suffix.lower() in PICTURE_EXTENSIONS for name in content.others if "/" not in name):
        # It is one video of pictures, whatever folders of pictures are below it, unless there are video files.
        return videos if any(map(Path.is_file, videos)) else []
    return videos


def _frames(source: Any) -> Tensor:
    """Return the frames of a video that was given as numbers, ``[S, 3, H, W]``."""
    expected = "source must be a video, uint8 [S, 3, H, W] or [S, H, W, 3]"
    if getattr(source, "is_meta", False) or str(source.dtype) not in ("uint8", "torch.uint8"):
        raise InputError(f"{expected}, got {source.dtype}; predict normalizes by itself: pass the frames as decoded")
    if isinstance(source, np.ndarray):
        # A copy of what PyTorch cannot hold: views with channels reversed, arrays that cannot be written to.
        source = torch.from_numpy(np.require(source, requirements=["C", "W"]))
    video: Tensor = source.cpu()
    if video.ndim == 4 and video.shape[1] != 3 and video.shape[3] == 3:
        video = video.permute(0, 3, 1, 2)
    if advice := advise_shape(video):
        raise InputError(f"{expected}, got {list(source.shape)}; {advice}")
    return video


def _views_of(frames: Tensor, reader: ClipReader) -> Tensor:
    """Return the views of a video ``[V, T, 3, H, W]``."""
    total = len(frames)
    if reader.stride is None:
        indices = uniform_indices(total, reader.frames, clips=reader.clips)
    else:
        indices = dense_indices(total, reader.frames, reader.stride, clips=reader.clips)
    assert reader.transform is not None
    return torch.cat([_together(reader.transform(frames[rows])) for rows in indices])
