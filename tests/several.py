"""Give a tiny model that holds three adapters, and models that hold one of them alone."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import aim_adapters as aim
from tests.tiny import FRAMES, base, run, wrapped

# One adapter of each kind: the same settings again, and others in every size that may differ.
CONFIGS = {
    "same": aim.AIMConfig(num_frames=FRAMES),
    "other": aim.AIMConfig(
        num_frames=2, bottleneck=0.5, num_classes=7, layers=(1,), components=("temporal", "joint"), train_norm=False
    ),
}


def several() -> VisionTransformer:
    """Return a model with three adapters of random values; "default" runs."""
    model = wrapped()
    for seed, name in enumerate(("default", *CONFIGS)):
        if name != "default":
            aim.add_adapter(model, name, CONFIGS[name])
            aim.set_adapter(model, name)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in aim.trainable_parameters(model):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    aim.set_adapter(model, "default")
    return model


def alone(name: str) -> VisionTransformer:
    """Return a model that has only this adapter, with the same values."""
    model, source = base(), several()
    aim.wrap_image_model(model, **aim.list_adapters(source)[name].to_dict())
    aim.load_adapter_state_dict(model, aim.adapter_state_dict(source, name=name))
    return model


def out(model: nn.Module, name: str) -> Tensor:
    return run(model, frames=CONFIGS["other"].num_frames if name == "other" else FRAMES)


NAMES = ("default", *CONFIGS)
