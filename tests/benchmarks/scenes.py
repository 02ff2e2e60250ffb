"""Photographs made up for tests, where nothing is fetched, and clips of many scenes."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.motion.photographs import Photographs, build_photographs
from benchmarks.motion.programs import Difficulty, Programs, classes_of, draw_programs

SPLITS = {name: "test" if name in "yz" else "train" for name in "abcdefgyz"}
CLASSES = list("abcde")


def picture(seed: int, height: int = 120, width: int = 160) -> Tensor:
    """Return blocks of color with finer noise, uint8 [height, width, 3], of integer arithmetic alone."""
    cell = torch.arange(height * width).view(height, width)
    row, column = cell // width, cell % width
    coarse = (row // 20 * 7 + column // 20 * 13 + seed * 29) * 2654435761 >> 7
    fine = (cell * 40503 + seed * 977) >> 5
    return torch.stack([(coarse * (5 + c) + (fine & 63)) & 255 for c in range(3)], -1).to(torch.uint8)


def scenes(**changed: Tensor) -> Photographs:
    """Return nine photographs, seven to learn from and two to test with; some may be given."""
    images = {name: changed.get(name, picture(seed)) for seed, name in enumerate(SPLITS)}
    return build_photographs(images, SPLITS, CLASSES)


def apart(
    variant: str, part: str, clips: int, photographs: Photographs, *, difficulty: Difficulty | None = None
) -> Programs:
    """Return clips of as many scenes, whose classes take turns."""
    step = len(classes_of(variant, photographs).names) + 1
    programs = draw_programs(variant, part, step * clips, photographs, difficulty=difficulty)
    return Programs(*(values[::step] for values in programs))
