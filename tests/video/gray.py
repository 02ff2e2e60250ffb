"""Small videos that are told apart by their brightness."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def write_video(
    path: Path,
    *,
    level: int = 0,
    frames: int = 12,
    size: tuple[int, int] = (24, 32),
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video whose frame i is gray, of brightness ``level + i``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx" if path.suffix == ".webm" else "libx264", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for index in range(frames):
            image = np.full((*size, 3), level + index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def brightness(clip: object) -> float:
    return float(np.asarray(clip, np.float32).mean())
