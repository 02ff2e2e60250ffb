"""The models that ``--baseline`` names, to compare adapters with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aim_adapters.cli.models import DEFAULT_MODEL, build_image_model

if TYPE_CHECKING:
    from torch import nn

    from aim_adapters.recipes import Recipe

# Known before PyTorch is imported.
BASELINES = (
    "frozen", "spatial", "temporal", "joint", "full", "full-space-time", "probe", "attentive-probe", "lora",
    "lora-temporal", "timesformer", "video-swin",
)  # fmt: skip
_WHOLE = ("timesformer", "video-swin")


def build_named_baseline(
    name: str,
    *,
    model: str | None,
    image_size: Sequence[int] | None,
    pretrained: bool,
    recipe: str | Recipe,
    frames: int,
    labels: Sequence[str],
) -> nn.Module:
    """Build a baseline.

    Args:
        name: Its name.
        model: The image model, or None.
        image_size: Height and width of frames, or None.
        pretrained: False: random weights.
        recipe: The recipe that it is trained by.
        frames: Frames of a clip.
        labels: Names of the classes.

    Raises:
        ConfigError: It is a video model by itself, and an image model or a size is given.
        CheckpointError: Weights cannot be fetched or read.
    """
    from aim_adapters.errors import CheckpointError, ConfigError
    from aim_adapters.training import build_baseline

    network = None
    if name not in _WHOLE:
        network = build_image_model(model or DEFAULT_MODEL, image_size=image_size, pretrained=pretrained)
    elif model is not None or image_size is not None:
        raise ConfigError(f"--baseline {name} is a video model of its own size; leave out --model and --image-size")
    try:
        return build_baseline(
            name, model=network, labels=labels, num_frames=frames, recipe=recipe, pretrained=pretrained
        )
    except OSError as error:
        raise CheckpointError(
            f"the weights of the baseline {name} cannot be fetched: {error}; --no-pretrained takes random ones"
        ) from error
