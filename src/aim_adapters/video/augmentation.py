"""Random changes of a clip: each is drawn once, from PyTorch's global generator, and made to all frames alike."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from aim_adapters.recipes import Augmentation

# Principal components of the colors of ImageNet's training images, RGB in [0, 1] (Krizhevsky et al., 2012): a column
# for each, and the square roots of their variances.
_COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_DEVIATIONS = (0.2175, 0.0188, 0.0045)
# Near the mean of all normalizations, so that what is filled with it says little.
_GRAY = 128


def happens(probability: float) -> bool:
    """Return whether an event of some probability happens.

    Args:
        probability: From 0 to 1; for 0 and 1 nothing is drawn.
    """
    return probability == 1 or (probability > 0 and bool(torch.rand(()) < probability))


def crop_at_random(frames: Tensor, size: tuple[int, int], augment: Augmentation) -> Tensor:
    """Return a crop of random area and aspect ratio, resized.

    Args:
        frames: ``[T, C, h, w]``, uint8.
        size: Height and width of the result.
        augment: Range of the area and of the aspect ratio.
    """
    aspect = size[1] / size[0]
    ratio = (augment.ratio[0] * aspect, augment.ratio[1] * aspect)
    box = v2.RandomResizedCrop(size, scale=augment.scale, ratio=ratio).make_params([frames])
    # Of a frame much narrower than any crop may be, torchvision would round a side to nothing.
    top, left, height, width = box["top"], box["left"], max(1, box["height"]), max(1, box["width"])
    # Cropped before it is resized, and laid out in one piece: PyTorch resizes other uint8 tensors at half the speed.
    crop = frames[..., top : top + height, left : left + width]
    channels_last = frames.is_contiguous(memory_format=torch.channels_last)
    crop = crop.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    resized: Tensor = functional.resize(crop, list(size), antialias=True)  # [T, C, H, W]
    return resized


def rand_augment(clip: Tensor, count: int, magnitude: int) -> Tensor:
    """Return a clip after some operations drawn at random (RandAugment, Cubuk et al., 2020).

    Args:
        clip: ``[T, 3, H, W]``, uint8.
        count: Number of operations.
        magnitude: Their magnitude, 0 to 30.
    """
    return v2.RandAugment(count, magnitude, fill=_GRAY)(clip)  # type: ignore[no-any-return]


def add_color_noise(clip: Tensor, deviation: float) -> Tensor:
    """Return a clip whose colors are shifted along ImageNet's principal components (Krizhevsky et al., 2012).

    Args:
        clip: ``[T, 3, H, W]``, uint8.
        deviation: Standard deviation of the shift, in those of the components.
    """
    if not deviation:
        return clip
    alpha = torch.randn(3) * deviation * torch.tensor(_DEVIATIONS)
    shift = (255 * torch.tensor(_COMPONENTS) @ alpha).round().to(torch.int16)  # [3]
    return (clip + shift.view(3, 1, 1).to(clip.device)).clamp_(0, 255).to(torch.uint8)


def erase_box(clip: Tensor, probability: float) -> Tensor:
    """Return a clip with, at times, one box of all its frames filled with gray (Zhong et al., 2020).

    Args:
        clip: ``[T, C, H, W]``, uint8.
        probability: How often.
    """
    return v2.RandomErasing(probability, value=_GRAY)(clip) if probability else clip
