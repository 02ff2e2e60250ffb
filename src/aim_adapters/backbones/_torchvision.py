"""torchvision's transformers, built by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from aim_adapters.backbones._assign import read_once
from aim_adapters.backbones._draft import check_draft
from aim_adapters.backbones._fetch import Kind, checked_arguments, fetch_state_dict
from aim_adapters.backbones.descriptor import BaseRequest
from aim_adapters.errors import ConfigError


def build(request: BaseRequest) -> nn.Module:
    """Build a torchvision model from its name and that of its weights.

    Args:
        request: With a name such as ``vit_b_16:IMAGENET1K_V1``. The file comes from an address in torchvision, is
            checked against its hash, and read without running any code in it.

    Raises:
        ConfigError: The model has no such weights, an argument is unknown, or the request has a directory or a
            revision, which torchvision does not support.
        As torchvision: it does not know the name, or cannot fetch the file.
    """
    from torchvision import models

    arguments = checked_arguments(request, _ARGUMENTS)
    if request.directory is not None or request.revision is not None:
        got = f"the directory {request.directory}" if request.directory else f"revision {request.revision!r}"
        raise ConfigError(f"torchvision builds by name and weights, as vit_b_16:IMAGENET1K_V1; got {got}")
    name, _, tag = request.name.partition(":")
    known = models.get_model_weights(name).__members__
    if request.pretrained and tag not in known:
        raise ConfigError(
            f"torchvision has no weights {request.name!r}; expected {name}: and one of {', '.join(known)}"
        )

    def create() -> nn.Module:
        model: nn.Module = models.get_model(name, weights=None, **arguments)
        return model

    check_draft(create, request)
    if not request.pretrained:
        return create()
    weights = fetch_state_dict(request, known[tag].url)

    def load() -> nn.Module:
        model = create()
        # A classification layer of another size keeps its random values, as in the other libraries.
        own = model.state_dict()
        fitting = {k: v for k, v in weights.tensors.items() if not k.startswith("head") or own[k].shape == v.shape}
        model.load_state_dict(fitting, strict=len(fitting) == len(weights.tensors))
        return model

    return read_once(load, [weights.file])


def classifier(request: BaseRequest, image_size: tuple[int, int] | None) -> BaseRequest:
    """Return a request completed for a model that classifies frames: with its default weights, and another size.

    Args:
        request: The request.
        image_size: Height and width of frames, or None.

    Raises:
        ConfigError: The model takes no other size, or only square ones.
        As torchvision: it does not know the name.
    """
    from torchvision import models

    name, _, tag = request.name.partition(":")
    if request.pretrained and not tag:
        weights: Any = models.get_model_weights(name)
        request = dataclasses.replace(request, name=f"{name}:{weights.DEFAULT.name}")
    if image_size is None or name.startswith("swin"):  # a Swin reads any size
        return request
    if image_size[0] != image_size[1]:
        raise ConfigError(f"a torchvision VisionTransformer reads square frames, got {image_size[0]}x{image_size[1]}")
    return request.with_arguments(image_size=image_size[0])


def names(prefix: str) -> list[str]:
    """Return the names of models and weights.

    Args:
        prefix: Start of the models' names.
    """
    from torchvision import models

    found = (name for name in models.list_models(module=models) if name.startswith(prefix))
    return [f"{name}:{tag.name}" for name in found for tag in models.get_model_weights(name)]


# The mean and std of all weights that torchvision publishes for its transformers.
STATISTICS: dict[str, Any] = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


def labels(root: nn.Module, name: str | None) -> Sequence[str] | None:
    """Return the names of the classes of published weights.

    Args:
        root: The root, which does not know what weights it holds.
        name: Such as ``vit_b_16:IMAGENET1K_V1``.
    """
    from torchvision import models

    model, _, tag = (name or "").partition(":")
    if not tag or model not in models.list_models():
        return None
    weights = models.get_model_weights(model).__members__.get(tag)
    found: Sequence[str] | None = None if weights is None else weights.meta["categories"]
    return found


_ARGUMENTS: dict[str, Kind] = {"num_classes": "classes", "image_size": "size"}
