"""Clips and labels of a variant of the benchmark, rendered on a device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.motion.photographs import Photographs
from benchmarks.motion.programs import VARIANTS, Difficulty, classes_of, draw_programs
from benchmarks.motion.render import render

__all__ = ["VARIANTS", "Clips", "Task", "load_task"]


class Clips(NamedTuple):
    """Clips and what they show: frames uint8 [B, T, 3, S, S], labels int64 [B]."""

    frames: Tensor
    labels: Tensor


class Task(NamedTuple):
    """A variant: clips to learn from and to test with, and the group of each class, the same for its reverse."""

    train: Clips
    test: Clips
    classes: tuple[str, ...]
    groups: tuple[int, ...]
    order_blind_bound: float


def load_task(
    variant: str,
    photographs: Photographs,
    *,
    clips: int,
    test_clips: int = 1200,
    frames: int = 8,
    size: int = 84,
    device: torch.device | str | None = None,
    difficulty: Difficulty | None = None,
) -> Task:
    """Render a variant; the first clips are the same however many are asked for.

    Args:
        variant: one of `VARIANTS`.
        photographs: of which the clips are made; the device that they are on renders.
        clips: clips to learn from.
        test_clips: clips to test with, of other photographs or, in "appearance", other parts of the same.
        frames: frames per clip, a divisor of 32; other numbers show the same motions, more or less densely.
        size: side of a frame in pixels.
        device: where the clips are put; by default where the photographs are.
        difficulty: strengths of motions and nuisances; by default the variant's own.
    """
    parts = []
    for part, count in (("train", clips), ("test", test_clips)):
        programs = draw_programs(variant, part, count, photographs, difficulty=difficulty)
        rendered = render(photographs, programs, frames=frames, size=size)
        labels = torch.from_numpy(programs.label)
        parts.append(Clips(rendered.to(device or rendered.device), labels.to(device or rendered.device)))
    classes = classes_of(variant, photographs)
    return Task(*parts, classes.names, classes.groups, classes.order_blind_bound)
