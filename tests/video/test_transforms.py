"""Crops and augmentation of clips: one choice for all frames, exact geometry, and refusals that say what to do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

import aim_adapters as aim
from aim_adapters.video import Augmentation, ClipTransform

SPEC = aim.ClipSpec(4, None, (24, 24), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
EVERYTHING = Augmentation(color=0.5, rand_augment=(2, 9), erasing=1.0)


def still(frames: int = 4, height: int = 40, width: int = 52) -> Tensor:
    """Return a video whose frames are all the same, random at low resolution."""
    image = torch.randint(0, 256, (1, 3, 10, 13), dtype=torch.uint8)
    return v2.functional.resize(image, [height, width]).expand(frames, -1, -1, -1)


@pytest.mark.parametrize("seed", range(12))
def test_one_random_choice_holds_for_all_frames(seed: int) -> None:
    torch.manual_seed(seed)
    clip = ClipTransform((24, 24), train=True, augment=EVERYTHING)(still())
    assert clip.dtype == torch.uint8 and clip.shape == (4, 3, 24, 24)
    assert all(torch.equal(frame, clip[0]) for frame in clip)
