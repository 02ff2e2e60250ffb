"""torchvision's VisionTransformer keeps every promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from tests.backbones.cases import Case, process_group, with_machinery
from tests.backbones.contract import Contract

__all__ = ["process_group"]

SIZE: dict[str, Any] = {
    "image_size": 16, "patch_size": 8, "num_layers": 3, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64,
    "num_classes": 5,
}  # fmt: skip


def member(name: str, **kwargs: Any) -> Case:
    def build(**more: Any) -> Callable[[], nn.Module]:
        return lambda: VisionTransformer(**{**SIZE, **kwargs, **more})

    return Case(name, build(), dropout=build(dropout=0.5, attention_dropout=0.5), checkpoints=False)


CASES = [member("vit", num_layers=2), member("representation", representation_size=24)]


MACHINERY = ("vit",)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return with_machinery(request.param, MACHINERY)


class TestContract(Contract):
    pass
