"""One clip of one video: where sampling, decoding and transforms meet."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aim_adapters.arguments import require_choice, require_flags, require_integer, shown
from aim_adapters.errors import ConfigError
from aim_adapters.video.decoding import BACKENDS, Backend, open_video
from aim_adapters.video.sampling import dense_indices, uniform_indices


@dataclass(frozen=True)
class ClipReader:
    """How clips are read from videos. It can be pickled, and opens a video only while it reads it.

    Args:
        frames: Frames of a clip, T.
        stride: Distance between the frames of a clip ("dense" sampling); None: one frame of each of T equal segments of
            the video ("uniform").
        train: Sample by the training rule, at random, instead of the test rule.
        clips: Clips of a video, spread in time.
        short_side: Length in pixels to which the decoder resizes the short side of frames; None: the ``short_side`` of
            ``transform``, where it has one, else the video's own.
        transform: Called with a clip, uint8 ``[T, 3, h, w]``; returns ``[T, 3, H, W]``, or ``[crops, T, 3, H, W]``. It
            may have a method ``with_label(frames, label)`` that returns both, as a flip may swap labels.
        backend: Decoder, as in `open_video`.

    Raises:
        ConfigError: A setting has a value that it cannot have.
    """

    frames: int
    stride: int | None = None
    train: bool = False
    clips: int = 1
    short_side: int | None = None
    transform: Callable[[Tensor], Tensor] | None = None
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        """Validate every setting."""
        put = object.__setattr__  # the dataclass is frozen; this is its constructor
        put(self, "frames", require_integer("num_frames", self.frames, low=1))
        put(self, "clips", require_integer("clips", self.clips, low=1))
        for name in ("stride", "short_side"):
            if (value := getattr(self, name)) is not None:
                put(self, name, require_integer(name, value, low=1))
        require_flags(train=self.train)
        require_choice("backend", self.backend, BACKENDS)
        if self.transform is not None and not callable(self.transform):
            raise ConfigError(
                f"transform must be callable, such as transform_for(model), got {shown(self.transform)} of type "
                f"{type(self.transform).__name__}"
            )

    def read(self, source: Any, seed: int | None = None) -> Tensor:
        """Return one clip of a video, or several views of it.

        Args:
            source: A video, as `open_video` takes it.
            seed: The clip and its augmentation are the same to the bit for the same seed, whatever process reads it,
                and no random number generator moves on. None: PyTorch's global generator.

        Returns:
            ``[T, 3, H, W]``, uint8 if the transform leaves it so. With several clips or crops ``[V, T, 3, H, W]``, the
            crops of the first clip first.

        Raises:
            VideoError: The video cannot be read.
            ConfigError: The transform returns something else than a clip.
        """
        return self.read_labeled(source, 0, seed)[0]

    def read_labeled(self, source: Any, label: int, seed: int | None = None) -> tuple[Tensor, int]:
        """Return what `read` returns, and the label of the clip, which is another one where a flip swaps labels.

        Args:
            source: A video, as `open_video` takes it.
            label: Class of the video.
            seed: As in `read`.

        Raises:
            VideoError: The video cannot be read.
            ConfigError: The transform returns something else than a clip.
        """
        with contextlib.nullcontext() if seed is None else _seeded(seed):
            return self._transformed(self._decoded(source), label)

    def _decoded(self, source: Any) -> Tensor:
        """Return the frames of all clips, ``[clips, T, 3, h, w]``."""
        short_side = self.short_side or getattr(self.transform, "short_side", None)
        with open_video(source, backend=self.backend) as video:
            total = len(video)
            # Without a generator, the functions return the test rule.
            generator = torch.default_generator if self.train else None
            if self.stride is None:
                indices = uniform_indices(total, self.frames, clips=self.clips, generator=generator)
            else:
                indices = dense_indices(total, self.frames, self.stride, clips=self.clips, generator=generator)
            frames = video.get_frames(indices.flatten(), short_side=short_side)
        clips: Tensor = frames.unflatten(0, indices.shape)  # [clips, T, 3, h, w]
        return clips

    def _transformed(self, clips: Tensor, label: int) -> tuple[Tensor, int]:
        """Return the views of clips, and their label."""
        with_label = getattr(self.transform, "with_label", None)
        views: list[Tensor] = []
        labels = set()
        for clip in clips:
            if with_label is not None:
                view, seen = with_label(clip, label)
                labels.add(seen)
            else:
                view = clip if self.transform is None else self.transform(clip)
            if not isinstance(view, Tensor) or view.ndim not in (4, 5):
                got = list(view.shape) if isinstance(view, Tensor) else type(view).__name__
                raise ConfigError(
                    f"the transform must return a clip [T, 3, H, W] or its crops [crops, T, 3, H, W], got {got} for a "
                    f"clip {list(clip.shape)}"
                )
            views.append(view)
        if len(labels) > 1:
            raise ConfigError(f"clips={self.clips} of one video were flipped differently, which gives them two labels")
        label = labels.pop() if labels else label
        if len(views) == 1 and views[0].ndim == 4:
            return views[0], label
        return torch.cat([view if view.ndim == 5 else view[None] for view in views]), label  # [V, T, 3, H, W]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators that transforms draw from, those of the CPU, and put them back afterwards."""
    # Not torch.manual_seed, which would seed the GPU's as well, and with it the model's dropout.
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
