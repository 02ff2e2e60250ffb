"""Makes H.264 videos whose classes come in time-reversed pairs, out of photographs.

A camera zooms, fades or pulls its focus over a photograph. Half of the clips are stored backwards: `zoom in` played
backwards is `zoom out`. The frames of the two are drawn alike, so a model that ignores their order cannot tell the two
apart, whatever else it knows.

That has to hold for the files too. An encoder that predicts frames from earlier ones, or spends more bits on a file's
first frame, would leave the direction of time in every single frame. So each frame is coded by itself (a key frame) at
one fixed quantizer: storing a clip backwards stores the same pictures in the other order, to the bit. And it has to
hold for the frames that are looked at: of 24 frames in eight segments the middle ones are the same when played
backwards.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter
from tqdm import tqdm

Box: TypeAlias = tuple[float, float, float]
Detail: TypeAlias = npt.NDArray[np.float64]

__all__ = ["CLASSES", "Clip", "make_videos", "plan", "render", "write_video"]

CLASSES = ("zoom in", "zoom out", "fade in", "fade out", "focus in", "focus out")
FORMAT = 2
# Of so many crops the one with most to see is taken: nobody can tell a zoom into a cloudless sky.
CANDIDATES = 4
DETAIL_SIDE = 128
# One key frame after the other at a constant quantizer, without decisions that look at neighboring frames.
ENCODER = {"preset": "veryfast", "qp": "20", "g": "1", "bf": "0", "x264-params": "scenecut=0:mbtree=0:rc-lookahead=0"}


@dataclass(frozen=True)
class Clip:
    """Says what one clip shows; it does not know the class, only its motion and whether it is stored backwards.

    Attributes:
        photograph: index of the photograph.
        motion: 0 zoom, 1 fade, 2 focus.
        backwards: whether the frames are stored in reverse order.
        far: box (left, top, side) at the start, as fractions of the photograph's shorter side.
        near: box at the end, inside of `far`; how far the camera closes in.
        strength: how dark a fade starts, or how blurred a focus pull, from 0 to 1.
        ease: exponent of progress over time; 1 is steady, 2 starts slowly.
        mirrored: whether the photograph is mirrored left to right.
    """

    photograph: int
    motion: int
    backwards: bool
    far: Box
    near: Box
    strength: float
    ease: float
    mirrored: bool

    @property
    def label(self) -> int:
        """Index into `CLASSES`."""
        return 2 * self.motion + int(self.backwards)


def plan(photographs: Sequence[Image.Image], *, clips: int, seed: int) -> list[Clip]:
    """Draw clips; classes and photographs are as balanced as their numbers allow.

    Args:
        photographs: RGB pictures; small ones will do.
        clips: number of clips.
        seed: the same seed gives the same clips.
    """
    rng = np.random.default_rng(seed)
    details = [_detail(photograph) for photograph in photographs]
    labels = rng.permutation(np.arange(clips) % len(CLASSES)).tolist()
    indices = rng.permutation(np.arange(clips) % len(photographs)).tolist()
    return [_draw(rng, details, label=label, index=index) for label, index in zip(labels, indices, strict=True)]


def _detail(photograph: Image.Image) -> Detail:
    """Measure how much there is to see at each place; `[height, width]`, the shorter side is `DETAIL_SIDE`."""
    scale = DETAIL_SIDE / min(photograph.size)
    size = (round(scale * photograph.width), round(scale * photograph.height))
    down, across = np.gradient(np.asarray(photograph.convert("L").resize(size), dtype=np.float64))
    detail: Detail = np.hypot(down, across)
    return detail


def _draw(rng: np.random.Generator, details: Sequence[Detail], *, label: int, index: int) -> Clip:
    motion, backwards = divmod(label, 2)
    boxes = [_draw_boxes(rng, details[index].shape, zooms=motion == 0) for _ in range(CANDIDATES)]
    far, near = max(boxes, key=lambda pair: min(_mean(details[index], box) for box in pair))
    return Clip(
        photograph=index,
        motion=motion,
        backwards=bool(backwards),
        far=far,
        near=near,
        strength=rng.uniform(0.6, 1.0),
        ease=2.0 ** rng.uniform(-0.5, 0.5),
        mirrored=bool(rng.integers(2)),
    )


def _draw_boxes(rng: np.random.Generator, shape: tuple[int, ...], *, zooms: bool) -> tuple[Box, Box]:
    height, width = (side / min(shape) for side in shape)
    far = rng.uniform(0.5, 1.0)
    near = far / (rng.uniform(2.0, 4.0) if zooms else rng.uniform(1.0, 1.1))
    left, top = rng.uniform(0, width - far), rng.uniform(0, height - far)
    inner = rng.uniform(0, far - near, 2)
    return (left, top, far), (left + inner[0], top + inner[1], near)


def _mean(detail: Detail, box: Box) -> float:
    left, top, side = (int(DETAIL_SIDE * value) for value in box)
    return float(detail[top : top + side + 1, left : left + side + 1].mean())


def render(photograph: Image.Image, clip: Clip, *, size: int, frames: int) -> list[Image.Image]:
    """Render a clip's frames in the order in which they are stored.

    Args:
        photograph: RGB picture.
        clip: what to show.
        size: width and height in pixels.
        frames: number of frames.

    Returns:
        RGB pictures of `size` x `size` pixels.
    """
    scale = min(photograph.size)
    pictures = []
    for progress in (np.linspace(0.0, 1.0, frames) ** clip.ease).tolist():
        # A steady zoom multiplies the box's side by the same factor in the same time; its corner follows the side, so
        # that one point of the picture stands still.
        side = clip.far[2] * (clip.near[2] / clip.far[2]) ** progress
        closed = (clip.far[2] - side) / max(clip.far[2] - clip.near[2], 1e-9)
        left = scale * (clip.far[0] + closed * (clip.near[0] - clip.far[0]))
        top = scale * (clip.far[1] + closed * (clip.near[1] - clip.far[1]))
        box = (left, top, min(left + scale * side, photograph.width), min(top + scale * side, photograph.height))
        picture = photograph.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
        if clip.motion == 1:
            picture = ImageEnhance.Brightness(picture).enhance(1 - clip.strength * (1 - progress))
        elif clip.motion == 2:
            picture = picture.filter(ImageFilter.GaussianBlur(0.1 * size * clip.strength * (1 - progress)))
        pictures.append(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if clip.mirrored else picture)
    return pictures[::-1] if clip.backwards else pictures


def write_video(path: Path, pictures: Sequence[Image.Image], *, fps: int = 8) -> None:
    """Write pictures of one even size to an H.264 mp4 file whose frames do not depend on one another."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options=ENCODER)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())


def make_videos(
    photographs: Sequence[Path],
    out: Path,
    *,
    clips: int,
    size: int = 112,
    frames: int = 24,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write clips as mp4 files, a folder for each class, and `.index.csv`; what is already there is kept.

    Args:
        photographs: picture files.
        out: folder for the videos, made when missing.
        clips: number of videos.
        size: width and height in pixels, even.
        frames: frames of each video.
        seed: the same seed and photographs give the same videos.
        progress: show a bar on standard error.

    Returns:
        The folder.

    Raises:
        ValueError: `size` is odd, which yuv420p cannot hold, or a number is below 1.
    """
    if size % 2 or min(size, clips, frames, len(photographs)) < 1:
        raise ValueError(
            f"size must be even and every number at least 1, got size={size}, clips={clips}, frames={frames} and "
            f"{len(photographs)} photographs."
        )
    made_from = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in photographs]
    numbers = {"format": FORMAT, "clips": clips, "size": size, "frames": frames, "seed": seed}
    settings = json.dumps(numbers | {"photographs": made_from})
    kept = out / ".settings.json"
    if kept.is_file() and kept.read_text() == settings:
        return out

    kept.unlink(missing_ok=True)
    for name in CLASSES:
        (out / name).mkdir(parents=True, exist_ok=True)
        for old in (out / name).glob("[0-9]*.mp4"):
            old.unlink()
    small = []
    for path in photographs:
        with Image.open(path) as opened:
            opened.draft("RGB", (2 * DETAIL_SIDE, 2 * DETAIL_SIDE))
            small.append(opened.convert("RGB"))
    plans = plan(small, clips=clips, seed=seed)
    names = [f"{CLASSES[clip.label]}/{number:05d}.mp4" for number, clip in enumerate(plans)]

    def make(index: int) -> None:
        with Image.open(photographs[index]) as opened:
            photograph = opened.convert("RGB")
        for name, clip in zip(names, plans, strict=True):
            if clip.photograph == index:
                write_video(out / name, render(photograph, clip, size=size, frames=frames))

    # Pillow and FFmpeg let go of Python's lock, so threads use every core.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(make, range(len(photographs)))
        bar = {"desc": f"Making {clips} videos", "unit": "photograph", "disable": not progress}
        list(tqdm(made, total=len(photographs), **bar))
    with (out / ".index.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "class", "photograph"])
        rows.writerows([n, CLASSES[c.label], photographs[c.photograph].name] for n, c in zip(names, plans, strict=True))
    kept.write_text(settings)
    return out
