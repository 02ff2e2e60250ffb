"""The last block computes the [class] token alone where nothing reads the others."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import aim_adapters as aim
from tests.core.cases import (
    T,
    model_of,
    tokens,
    video,
)

# The last block


def test_the_last_block_computes_the_class_token_alone(narrowed: list[tuple[int, ...]]) -> None:
    model = model_of(init_values=0.1)
    out = model(video())
    assert narrowed == [(2 * T, 5, 32)]
    aim.set_execution(model, fused=False)
    torch.testing.assert_close(model(video()), out, rtol=1e-10, atol=1e-10)
    assert len(narrowed) == 1


@pytest.mark.parametrize("path", ["blocks.1", "blocks.1.mlp", "blocks", "norm"])
def test_who_listens_hears_all_tokens(path: str, narrowed: list[tuple[int, ...]]) -> None:
    model, seen = model_of(), []
    expected = model(video())
    handle = model.get_submodule(path).register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    torch.testing.assert_close(model(video()), expected, rtol=1e-10, atol=1e-10)
    assert seen == [(2 * T, 5, 32)]
    assert len(narrowed) == 1
    handle.remove()
    model(video())
    assert len(narrowed) == 2


def test_who_reads_other_tokens_gets_them(narrowed: list[tuple[int, ...]]) -> None:
    class Dense(VisionTransformer):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.forward_features(x)[:, 1:].mean(1))

    later = model_of()
    later.global_pool = "avg"
    for model in (model_of(Dense), later):
        out = model(video())
        aim.set_execution(model, fused=False)
        torch.testing.assert_close(out, model(video()), rtol=1e-10, atol=1e-10)
    assert not narrowed


def test_who_asks_for_tokens_gets_all_of_them(narrowed: list[tuple[int, ...]]) -> None:
    model = model_of()
    assert model.forward_features(video().flatten(0, 1)).shape == (2 * T, 5, 32)
    assert model.blocks[1](tokens()).shape == (2 * T, 5, 32)
    assert not narrowed


def test_a_spatial_adapter_that_was_replaced_is_called(narrowed: list[tuple[int, ...]]) -> None:
    model = model_of()
    model.blocks[1].aim.spatial = nn.Linear(32, 32, dtype=torch.float64)
    model(video()).sum().backward()
    assert model.blocks[1].aim.spatial.weight.grad is not None
    assert not narrowed
