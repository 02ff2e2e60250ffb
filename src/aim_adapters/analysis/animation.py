"""Clips as files that play: GIF, animated WebP and H.264 video."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from aim_adapters.arguments import require_number, require_path, shown
from aim_adapters.errors import ConfigError, VideoError
from aim_adapters.storage import replaced_when_whole
from aim_adapters.video import require_frames


def save_gif(frames: Tensor, path: str | os.PathLike[str], *, fps: float = 8) -> None:
    """Write frames as a picture that plays in a loop: a GIF, or a WebP, which is several times smaller.

    Args:
        frames: uint8 ``[T, 3, H, W]``.
        path: The file, ``.gif`` or ``.webp``; one that exists is replaced once the new one is complete.
        fps: Frames per second, at most 50. A GIF counts in hundredths of a second.

    Raises:
        TypeError: ``path`` is not a path.
        ConfigError: The file has another suffix, its folder does not exist, or ``fps`` is out of range.
        InputError: ``frames`` are of another kind or shape.
        VideoError: The file cannot be written; what was there is as it was.
    """
    from PIL import Image

    require_frames(frames)
    milliseconds = round(1000 / _rate(fps, most=50))
    with _written(path, (".gif", ".webp")) as file:
        first, *others = (Image.fromarray(frame.numpy()) for frame in frames.cpu().permute(0, 2, 3, 1).contiguous())
        webp = Path(path).suffix.lower() == ".webp"
        kind, options = ("WEBP", {"quality": 80, "method": 4}) if webp else ("GIF", {"optimize": True})
        first.save(file, kind, save_all=True, append_images=others, duration=milliseconds, loop=0, **options)


def save_video(frames: Tensor, path: str | os.PathLike[str], *, fps: float = 8) -> None:
    """Write frames as an MP4 video (H.264) that every browser and player shows.

    H.264 stores even sizes: the last row or column of an odd one is repeated.

    Args:
        frames: uint8 ``[T, 3, H, W]``.
        path: The file, ``.mp4``; one that exists is replaced once the new one is complete.
        fps: Frames per second, at most 240.

    Raises:
        ImportError: PyAV is not installed.
        TypeError: ``path`` is not a path.
        ConfigError: The file has another suffix, its folder does not exist, or ``fps`` is out of range.
        InputError: ``frames`` are of another kind or shape.
        VideoError: The file cannot be written; what was there is as it was.
    """
    require_frames(frames)
    rate = Fraction(_rate(fps, most=240)).limit_denominator(1001)
    try:
        import av
    except ImportError as error:
        raise ImportError("writing videos needs PyAV; install aim-adapters[video]") from error
    height, width = frames.shape[2:]
    with _written(path, (".mp4",)) as file:
        # "h264" is whichever encoder this FFmpeg has; the index comes first, so that a browser plays before it has all.
        with av.open(os.fspath(file), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("h264", rate=rate, options={"crf": "18"})
            stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
            for frame in frames:
                padded = F.pad(frame.cpu()[None].float(), (0, width % 2, 0, height % 2), mode="replicate")[0]
                pixels = padded.byte().permute(1, 2, 0).contiguous().numpy()
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())


def _rate(fps: object, *, most: int) -> float:
    rate = require_number("fps", fps, low=0, open_low=True)
    if not 0.01 <= rate <= most:
        raise ConfigError(f"fps must be from 0.01 to {most} frames per second, got {shown(fps)}")
    return rate


@contextmanager
def _written(path: object, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield the path to write to, which takes the name that was asked for when all is written.

    Raises:
        TypeError: It is not a path.
        ConfigError: It has another suffix, or its folder does not exist.
        VideoError: It cannot be written.
    """
    file = require_path("path", path)
    if file.suffix.lower() not in suffixes:
        raise ConfigError(f"path must end in {' or '.join(suffixes)}, got {shown(os.fspath(file))}")
    try:
        if not file.parent.is_dir():
            raise ConfigError(
                f"path must be in a folder that exists, got {shown(os.fspath(file))}; make it first: "
                "path.parent.mkdir(parents=True)"
            )
        with replaced_when_whole(file) as staged:
            yield staged
    except ConfigError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character; or there is no encoder
        raise VideoError(f"{file!s:.500}: cannot be written, and is as it was: {error!s:.300}") from error
