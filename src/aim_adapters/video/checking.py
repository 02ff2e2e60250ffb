"""A look at every video of a folder or dataset, before hours of training are spent on it."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from aim_adapters.arguments import require_choice, require_flags, require_integer
from aim_adapters.errors import ConfigError, VideoError
from aim_adapters.video.datasets import SkippedVideo, VideoDataset, content_of, user_path
from aim_adapters.video.decoding import BACKENDS, Backend, open_video

# Beyond these, training waits for the decoder on most machines.
_LARGE_SIDE = 480
_FAR_KEY_FRAMES = 60
# Frames in memory at once, when a video is decoded from end to end.
_CHUNK = 16


@dataclass(frozen=True)
class VideoCheck:
    """What was found about one video.

    Args:
        name: Its name.
        ok: Whether it can be read.
        reason: Why not.
        frames: Number of its frames.
        fps: Frames per second.
        size: Height and width of its frames.
        codec: Name of its codec.
        duration: Length in seconds.
        key_frame_distance: Greatest distance between two key frames, in frames.
        advice: What makes reading it slow.
    """

    name: str
    ok: bool
    reason: str | None = None
    frames: int | None = None
    fps: float | None = None
    size: tuple[int, int] | None = None
    codec: str | None = None
    duration: float | None = None
    key_frame_distance: int | None = None
    advice: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckReport:
    """What was found about many videos; it prints as a summary.

    Args:
        videos: What was found about each.
        ignored: Files beside them that are no videos by their extension.
    """

    videos: tuple[VideoCheck, ...]
    ignored: tuple[str, ...] = ()

    @property
    def broken(self) -> tuple[VideoCheck, ...]:
        """The videos that cannot be read."""
        return tuple(video for video in self.videos if not video.ok)

    @property
    def ok(self) -> bool:
        """Whether every video can be read."""
        return not self.broken

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON holds it."""
        return {
            "ok": self.ok,
            "count": len(self.videos),
            "broken": len(self.broken),
            "videos": [asdict(video) for video in self.videos],
            "ignored": list(self.ignored),
        }

    def __str__(self) -> str:
        good = [video for video in self.videos if video.ok]
        lines = [f"{len(self.videos)} videos, {len(good)} can be read"]
        lines += [f"broken: {video.name}: {video.reason}" for video in self.broken]
        if good:
            seconds = sum(video.duration or 0 for video in good)
            frames = [video.frames or 0 for video in good]
            lines.append(f"codecs: {_counted(video.codec for video in good)}")
            lines.append(f"sizes: {_counted(_size(video.size) for video in good)}")
            lines.append(f"frames per second: {_counted(f'{video.fps:g}' for video in good if video.fps)}")
            lines.append(f"frames: {min(frames)} to {max(frames)}; {seconds / 60:.1f} minutes in all")
        advice = Counter(advice for video in good for advice in video.advice)
        lines += [f"advice for {count} videos: {text}" for text, count in advice.most_common()]
        if self.ignored:
            shown = ", ".join(self.ignored[:5]) + ", …" * (len(self.ignored) > 5)
            lines.append(f"no videos by their extension, left out: {len(self.ignored)} files: {shown}")
        return "\n".join(lines)


def check_videos(
    videos: str | os.PathLike[str] | VideoDataset,
    *,
    full: bool = False,
    workers: int | None = None,
    backend: Backend = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Open every video, decode some of its frames or all, and return what was found.

    Args:
        videos: A folder, which is searched through all its folders, one video, or a dataset.
        full: Decode every frame, instead of the first, the middle and the last.
        workers: Number of processes; by default one for each processor. 0: this process.
        backend: Decoder, as in `open_video`.
        progress: Called with the number of videos that are done, and of all.

    Raises:
        TypeError: ``videos`` is neither a path nor a dataset.
        ConfigError: There is no video, or another argument is invalid.
    """
    require_flags(full=full)
    require_choice("backend", backend, BACKENDS)
    names, skipped = _found(videos)
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(most, len(names) - 1) if workers is None else require_integer("workers", workers, low=0, high=1024)
    checks = _Checks(names, full=full, backend=backend)
    found: list[VideoCheck] = []
    # A DataLoader keeps the order, and hands on what workers raise. Each item is a batch.
    for check in DataLoader(checks, batch_size=None, num_workers=count):
        found.append(check)
        if progress is not None:
            progress(len(found), len(names))
    # What a dataset has met while it was read is checked already.
    known = {check.name for check in found}
    found += [VideoCheck(item.name, False, item.reason) for item in skipped if item.counts and item.name not in known]
    return CheckReport(tuple(found), tuple(record.name for record in skipped if not record.counts))


def _found(videos: Any) -> tuple[Sequence[tuple[str, str]], Sequence[SkippedVideo]]:
    """Return the path and name of each video, and what is left out."""
    if isinstance(videos, VideoDataset):
        return _Sources(videos), videos.skipped[:]
    path = user_path("videos", videos, expected="a folder, a video or a VideoDataset")
    if path.is_file():
        return [(str(path), path.name)], []
    try:
        content = content_of(path)
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read as a folder of videos: {error}") from error
    names = content.videos + content.nested
    if not names:
        raise ConfigError(f"there is no video in {str(path)!r}, by the extensions of its files")
    hidden = (name for name in content.others if not Path(name).name.startswith("."))
    return [(str(path / name), name) for name in names], [SkippedVideo(name, "", False) for name in hidden]


class _Sources(Sequence[tuple[str, str]]):
    """Path and name of each video of a dataset, which holds them in little memory."""

    def __init__(self, dataset: VideoDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        sample = self.dataset.samples[index]
        return sample.source, sample.name


class _Checks(Dataset[VideoCheck]):
    """The check of each video, for worker processes."""

    def __init__(self, names: Sequence[tuple[str, str]], *, full: bool, backend: Backend) -> None:
        self.names, self.full, self.backend = names, full, backend

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> VideoCheck:
        source, name = self.names[index]
        try:
            return _checked(source, name, self.full, self.backend)
        except VideoError as error:
            return VideoCheck(name, False, str(error).removeprefix(f"{source}: "))


def _checked(source: str, name: str, full: bool, backend: Backend) -> VideoCheck:
    with open_video(source, backend=backend) as video:
        frames = len(video)
        for indices in _chunks(frames) if full else [sorted({0, frames // 2, frames - 1})]:
            video.get_frames(indices)
        keys, fps = video.key_frames, video.fps if math.isfinite(video.fps) and video.fps > 0 else None
        distance = None if keys is None else max(_gaps(keys, frames), default=frames)
        return VideoCheck(
            name,
            ok=True,
            frames=frames,
            fps=fps,
            size=video.frame_size,
            codec=video.codec,
            duration=None if fps is None else frames / fps,
            key_frame_distance=distance,
            advice=tuple(_advice(video.frame_size, distance)),
        )


def _chunks(frames: int) -> Iterator[range]:
    for start in range(0, frames, _CHUNK):
        yield range(start, min(start + _CHUNK, frames))


def _gaps(keys: Sequence[int], frames: int) -> Iterator[int]:
    positions = [*keys, frames]
    return (after - before for before, after in pairwise(positions))


def _advice(size: tuple[int, int], distance: int | None) -> Iterator[str]:
    if min(size) > _LARGE_SIDE:
        yield (
            f"the short side is over {_LARGE_SIDE} pixels: store videos with one of 320, which decode several times "
            "faster (ffmpeg -vf scale=-2:320)"
        )
    if distance is not None and distance > _FAR_KEY_FRAMES:
        yield (
            f"key frames are over {_FAR_KEY_FRAMES} frames apart, and a frame needs all since the last one: "
            "store videos with one every 12 (ffmpeg -g 12)"
        )


def _size(size: tuple[int, int] | None) -> str:
    return "unknown" if size is None else f"{size[1]}×{size[0]}"


def _counted(values: Iterable[str | None]) -> str:
    """Return the most frequent of some values with their number."""
    counts = Counter(value or "unknown" for value in values).most_common()
    return ", ".join(f"{value} ({count})" for value, count in counts[:5]) + ", …" * (len(counts) > 5)
