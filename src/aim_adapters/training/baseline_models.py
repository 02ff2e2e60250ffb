"""The modules of baselines: image models whose features are averaged over frames, and video models of libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy
from aim_adapters.clip_spec import ClipFacts, ClipSpec
from aim_adapters.core import can_train, listed, place_of
from aim_adapters.errors import ConfigError, UnsupportedModelError
from aim_adapters.layers import average_frames, flatten_video, new_classifier


class Baseline(nn.Module):
    """A video classifier to compare with, which `fit`, `evaluate` and `predict` take like a wrapped model.

    Args:
        baseline: Its name in `list_baselines`.
        num_classes: Number of classes K.
        facts: What it reads.
        channels: Channels of a frame.
        tubelet_size: Consecutive frames that are averaged before the model reads them.
    """

    def __init__(
        self, baseline: str, num_classes: int, facts: ClipFacts, *, channels: int, tubelet_size: int = 1
    ) -> None:
        super().__init__()
        self.baseline, self.num_classes, self.clip_facts = baseline, num_classes, facts
        self.channels, self.tubelet_size = channels, tubelet_size

    def set_spec(self, spec: ClipSpec) -> None:
        """Note what clips are, to be saved with the weights.

        Args:
            spec: What the model reads.

        Raises:
            ConfigError: It has another number of classes.
        """
        if spec.labels is not None and len(spec.labels) != self.num_classes:
            raise ConfigError(f"got {len(spec.labels)} labels for a model with {self.num_classes} classes")
        self.clip_facts = ClipFacts(**vars(spec))

    def frames_of(self, video: Tensor) -> Tensor:
        """Return the frames that the model reads, as one batch of images.

        Args:
            video: Floating point and normalized, ``[B, T, C, H, W]``.

        Raises:
            InputError: It is of another kind or shape.
        """
        facts = self.clip_facts
        return flatten_video(
            video, num_frames=facts.frames, channels=self.channels, layout="BTCHW", tubelet_size=self.tubelet_size,
            mean=facts.mean, std=facts.std,
        )  # fmt: skip


class ImageBaseline(Baseline):
    """A baseline around an image model, which reads frame by frame.

    Args:
        baseline: Name of the baseline.
        image_model: The image model; its classification layer is taken away.
        anatomy: Its anatomy.
        num_classes: Number of classes K.
        facts: What it reads.
        tubelet_size: Consecutive frames that are averaged before the image model reads them.
    """

    def __init__(
        self,
        baseline: str,
        image_model: nn.Module,
        anatomy: BackboneAnatomy,
        num_classes: int,
        *,
        facts: ClipFacts,
        tubelet_size: int,
    ) -> None:
        super().__init__(baseline, num_classes, facts, channels=anatomy.in_channels, tubelet_size=tubelet_size)
        for layer in anatomy.heads:
            image_model.set_submodule(layer.path, nn.Identity())
        for name in anatomy.hidden_when_headed:  # a projection that a new classifier does not read
            setattr(image_model, name, None)
        self.image_model = image_model
        self._pooled = anatomy.pooled_outputs

    @property
    def read_frames(self) -> int:
        """Frames of a clip that the image model reads."""
        return self.clip_facts.frames // self.tubelet_size

    def features(self, frames: Tensor) -> Tensor:
        """Return what the image model says of each frame.

        Args:
            frames: Floating point and normalized, ``[B*T, C, H, W]``.

        Returns:
            Features ``[B*T, D]``.
        """
        out: Any = self.image_model(frames)
        if isinstance(out, Tensor):
            return out
        found: Tensor = next(out[name] for name in self._pooled if out.get(name) is not None)
        return found


class FrameAverage(ImageBaseline):
    """An image model that sees each frame by itself: its features are averaged over frames and classified.

    Args:
        baseline: Name of the baseline.
        image_model: The image model; its classification layer is taken away.
        anatomy: Its anatomy.
        num_classes: Number of classes K.
        facts: What it reads.
        tubelet_size: Consecutive frames that are averaged before the image model reads them.
        dropout: Dropout rate before the classification layer.

    Attributes:
        temporal: What hooks of the blocks add over frames, or None.
    """

    def __init__(
        self,
        baseline: str,
        image_model: nn.Module,
        anatomy: BackboneAnatomy,
        num_classes: int,
        *,
        facts: ClipFacts,
        tubelet_size: int,
        dropout: float,
    ) -> None:
        super().__init__(baseline, image_model, anatomy, num_classes, facts=facts, tubelet_size=tubelet_size)
        place = place_of(image_model.get_submodule(anatomy.blocks[-1][0]))
        self.temporal: nn.ModuleList | None = None
        self.dropout, self.head = nn.Dropout(dropout), new_classifier(anatomy.output_width, num_classes, **place)

    def forward(self, video: Tensor) -> Tensor:
        """Classify clips.

        Args:
            video: Floating point and normalized, ``[B, T, C, H, W]``.

        Returns:
            Logits ``[B, K]``.

        Raises:
            InputError: The video is of another kind or shape.
        """
        features = average_frames(self.features(self.frames_of(video)), self.read_frames)  # [B, D]
        logits: Tensor = self.head(self.dropout(features))
        return logits


class VideoTransformer(Baseline):
    """A video model of a library, with a new classification layer.

    Args:
        baseline: Name of the baseline.
        video_model: The video model.
        classifier: Name of its classification layer.
        num_classes: Number of classes K.
        facts: What it reads.
        channels_first: Whether it reads ``[B, C, T, H, W]``, and not ``[B, T, C, H, W]``.
    """

    def __init__(
        self,
        baseline: str,
        video_model: nn.Module,
        classifier: str,
        num_classes: int,
        *,
        facts: ClipFacts,
        channels_first: bool,
    ) -> None:
        super().__init__(baseline, num_classes, facts, channels=3)
        old: Any = getattr(video_model, classifier)
        setattr(video_model, classifier, new_classifier(old.in_features, num_classes, **place_of(old)))
        self.video_model, self.channels_first = video_model, channels_first

    def forward(self, video: Tensor) -> Tensor:
        """Classify clips.

        Args:
            video: Floating point and normalized, ``[B, T, C, H, W]``.

        Returns:
            Logits ``[B, K]``.

        Raises:
            InputError: The video is of another kind or shape.
        """
        clips = self.frames_of(video).unflatten(0, (-1, self.clip_facts.frames))  # [B, T, C, H, W]
        out: Any = self.video_model(clips.transpose(1, 2) if self.channels_first else clips)
        logits: Tensor = out if isinstance(out, Tensor) else out.logits
        return logits


def require_trainable(model: nn.Module) -> None:
    """Refuse a model with weights that cannot train.

    Args:
        model: Any model.

    Raises:
        UnsupportedModelError: It has such weights.
    """
    if fixed := [name for name, parameter in model.named_parameters() if not can_train(parameter)]:
        raise UnsupportedModelError(
            f"weights that are quantized or integers have no gradients: {listed(fixed)}; load the model in float32"
        )


def train_all(model: nn.Module, output: Callable[[Tensor], Tensor], blank: Tensor) -> None:
    """Let all parameters train, but for those that the output does not depend on, which would get no gradients.

    Args:
        model: The baseline, or a part of it.
        output: Calls what is to be trained.
        blank: What it reads.
    """
    model.requires_grad_(True)
    parameters = list(model.parameters())
    with trying(model), torch.enable_grad():
        gradients = torch.autograd.grad(output(blank).sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


@contextmanager
def trying(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode to try it, and put each part back into the mode that it was in.

    Args:
        model: Any model.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
