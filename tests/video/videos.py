"""Video files, written by PyAV, whose content is known."""

from __future__ import annotations

import functools
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

Frame = npt.NDArray[np.uint8]


@functools.cache
def _scene(height: int, width: int, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((2 * width, 2 * height), Image.Resampling.BICUBIC)


def pictures(count: int, *, height: int = 48, width: int = 64, seed: int = 0) -> list[Image.Image]:
    """Return frames of a camera that moves over a scene; all differ."""
    scene = _scene(height, width, seed)
    return [scene.crop((i % width, i % height, i % width + width, i % height + height)) for i in range(count)]


def write(
    path: Path,
    codec: str = "libx264",
    *,
    count: int = 30,
    height: int = 48,
    width: int = 64,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    times: list[int] | None = None,
    rotation: int = 0,
    seed: int = 0,
) -> Path:
    """Write a video; ``times`` are those of frames, in milliseconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream: Any = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for index, picture in enumerate(pictures(count, height=height, width=width, seed=seed)):
            frame = av.VideoFrame.from_image(picture)
            if times:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_audio(path: Path) -> Path:
    """Write a file with sound alone."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decode_all(path: Path) -> list[Frame]:
    """Decode every frame in order, as a plain loop does."""
    with av.open(str(path)) as container:
        return [
            frame.reformat(format="rgb24", src_color_range=frame.color_range).to_ndarray()
            for frame in container.decode(video=0)
        ]
