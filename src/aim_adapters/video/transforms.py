"""From decoded frames to what a model reads: crops and augmentation in uint8, and normalization last."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from aim_adapters.arguments import read_items, require_flags, require_integer, shown
from aim_adapters.clip_spec import ClipSpec, clip_spec
from aim_adapters.errors import ConfigError
from aim_adapters.recipes import Augmentation
from aim_adapters.video.augmentation import add_color_noise, crop_at_random, erase_box, happens, rand_augment
from aim_adapters.video.datasets import mirrored_classes
from aim_adapters.video.frames import require_frames
from aim_adapters.video.normalization import Normalize

_SIZE = "size must be a height and a width in pixels"


@dataclass(frozen=True)
class ClipTransform:
    """Crops, and in training augments, the frames of a clip; uint8 in, uint8 out. It can be pickled.

    Every random choice is made once for a clip, from PyTorch's global generator, and is the same in all frames.

    In training, a crop of random area and aspect ratio is resized to ``size``. In testing, frames are resized until
    their short side is ``short_side``, more if they would not cover ``size``, and cropped. Frames whose short side has
    that length already are not resized again, so the decoder may have done it.

    Args:
        size: Height and width of the result, in pixels.
        train: Augment, by the settings in ``augment``.
        crops: In testing: 1, the center; or this many, spread evenly along the side that exceeds ``size`` the most.
        short_side: Length in pixels of the frames' short side before cropping. By default that of the paper, which for
            images of 224 is 256 in training, where only the decoder heeds it, and 224 in testing.
        augment: Augmentation for training.

    Raises:
        ConfigError: A setting has a value that it cannot have.
    """

    size: tuple[int, int]
    train: bool = field(default=False, kw_only=True)
    crops: int = field(default=1, kw_only=True)
    short_side: int | None = field(default=None, kw_only=True)
    augment: Augmentation = field(default=Augmentation(), kw_only=True)

    def __post_init__(self) -> None:
        """Normalize and validate every setting."""
        put = object.__setattr__  # the dataclass is frozen; this is its constructor
        size = [require_integer("size", item, low=2, high=2**14) for item in read_items(self.size, _SIZE)]
        if len(size) != 2:
            raise ConfigError(f"{_SIZE}, got {shown(self.size)}")
        put(self, "size", tuple(size))
        require_flags(train=self.train)
        put(self, "crops", require_integer("crops", self.crops, low=1, high=100))
        if self.train and self.crops > 1:
            raise ConfigError(f"crops={self.crops} is for testing; a training clip is one random crop")
        default = round(min(size) * 256 / 224) if self.train else min(size)
        chosen = default if self.short_side is None else self.short_side
        put(self, "short_side", require_integer("short_side", chosen, low=1, high=2**14))
        if not isinstance(self.augment, Augmentation):
            raise ConfigError(f"augment must be an Augmentation, got {shown(self.augment)}")

    def __call__(self, frames: Tensor) -> Tensor:
        """Return a clip, ``[T, 3, H, W]``, or with several crops ``[crops, T, 3, H, W]``.

        Args:
            frames: ``[T, 3, h, w]``, uint8.

        Raises:
            InputError: The frames are of another kind or shape.
            ConfigError: A flip would swap labels; see `with_label`.
        """
        if self.train and self.augment.flip and self.augment.swapped_labels:
            raise ConfigError("this transform swaps labels where it flips; call with_label(frames, label)")
        return self.with_label(frames, 0)[0]

    def with_label(self, frames: Tensor, label: int) -> tuple[Tensor, int]:
        """Return a clip as a call does, and its label: that of the mirrored class if the clip was flipped.

        Args:
            frames: ``[T, 3, h, w]``, uint8.
            label: Class of the clip.

        Raises:
            InputError: The frames are of another kind or shape.
        """
        require_frames(frames)
        if not self.train:
            return self._cropped(frames), label
        clip = crop_at_random(frames, self.size, self.augment)
        swapped = self.augment.swapped_labels
        mirrored = swapped.get(int(label), label) if swapped else label
        if happens(self.augment.flip) and mirrored is not None:
            clip, label = functional.horizontal_flip(clip), mirrored
        if self.augment.rand_augment is not None:
            clip = rand_augment(clip, *self.augment.rand_augment)
        clip = add_color_noise(clip, self.augment.color)
        return erase_box(clip, self.augment.erasing), label

    def _cropped(self, frames: Tensor) -> Tensor:
        """Return the center of frames, or several crops, for testing."""
        (height, width), (h, w) = self.size, frames.shape[-2:]
        # The greatest factor, as a fraction of integers: the short side becomes `short_side`, and `size` is covered.
        factors = [(self.short_side or min(self.size), min(h, w)), (height, h), (width, w)]
        new, old = max(factors, key=lambda factor: Fraction(*factor))
        if new != old:
            h, w = h * new // old, w * new // old
            frames = functional.resize(frames, [h, w], antialias=True)  # [T, 3, h, w]
        top, left = h - height, w - width
        if self.crops == 1:
            center: Tensor = functional.crop(frames, round(top / 2), round(left / 2), height, width)
            return center
        steps = [index / (self.crops - 1) for index in range(self.crops)]
        starts = [(round(top * s), round(left / 2)) if top > left else (round(top / 2), round(left * s)) for s in steps]
        return torch.stack([functional.crop(frames, *start, height, width) for start in starts])  # [crops, T, 3, H, W]


@dataclass(frozen=True)
class ModelTransform:
    """Makes of decoded frames what a model reads: `ClipTransform`, then `Normalize`. `transform_for` returns it.

    Args:
        clip: Crops and augmentation.
        normalize: Normalization.
    """

    clip: ClipTransform
    normalize: Normalize

    @property
    def short_side(self) -> int | None:
        """Return the length to which the decoder may resize the short side of frames."""
        return self.clip.short_side

    @property
    def train(self) -> bool:
        """Return whether it augments, so that a dataset samples by the training rule."""
        return self.clip.train

    def __call__(self, frames: Tensor) -> Tensor:
        """Return a clip, float32 ``[T, 3, H, W]``, or with several crops ``[crops, T, 3, H, W]``.

        Args:
            frames: ``[T, 3, h, w]``, uint8.

        Raises:
            InputError: The frames are of another kind or shape.
            ConfigError: A flip would swap labels; see `with_label`.
        """
        clip: Tensor = self.normalize(self.clip(frames))
        return clip

    def with_label(self, frames: Tensor, label: int) -> tuple[Tensor, int]:
        """Return a clip as a call does, and its label, as `ClipTransform.with_label` does.

        Args:
            frames: ``[T, 3, h, w]``, uint8.
            label: Class of the clip.

        Raises:
            InputError: The frames are of another kind or shape.
        """
        clip, label = self.clip.with_label(frames, label)
        return self.normalize(clip), label


def transform_for(model: nn.Module | ClipSpec, train: bool = False, crops: int = 1) -> ModelTransform:
    """Return what turns decoded frames into what a model reads: its image size, normalized as it was trained.

    Args:
        model: A wrapped model, or what `clip_spec` returned for it.
        train: Take random crops, and flip half of the clips; where the names of the model's classes tell a direction,
            a flip swaps labels (`mirrored_classes`). For more, build a `ClipTransform`.
        crops: Crops of a clip in testing, spread along its longer side.

    Returns:
        A callable for uint8 frames ``[T, 3, h, w]`` that returns float32 ``[T, 3, H, W]``, or with several crops
        ``[crops, T, 3, H, W]``. It can be pickled.

    Raises:
        TypeError: ``model`` is neither a module nor a spec.
        StateError: The model is not wrapped, or holds several wrapped models.
        ConfigError: ``crops`` is out of range, or the model does not say its image size or normalization.
    """
    spec = model if isinstance(model, ClipSpec) else clip_spec(model)
    augment = Augmentation(swapped_labels=mirrored_classes(spec.labels) if spec.labels else {})
    clip = ClipTransform(spec.image_size, train=train, crops=crops, augment=augment)
    return ModelTransform(clip, Normalize(spec.mean, spec.std))
