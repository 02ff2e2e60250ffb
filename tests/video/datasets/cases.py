"""A folder of videos of two classes."""

from __future__ import annotations

from pathlib import Path

from tests.video.gray import write_video


def videos(root: Path, *, names: tuple[str, ...] = ("in/a.mp4", "in/b.mp4", "out/c.mp4", "out/d.mp4")) -> Path:
    """Write videos of increasing brightness: 20, 60, 100, …"""
    for position, name in enumerate(names):
        write_video(root / name, level=20 + 40 * position, frames=8)
    return root


def fake(root: Path, *names: str) -> Path:
    """Make empty files, as nothing is read when a dataset is made."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root
