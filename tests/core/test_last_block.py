"""The last block computes the [class] token alone where nothing reads the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

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


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # PyTorch's own
@pytest.mark.parametrize("compiled_first", [True, False])
@pytest.mark.parametrize("how", ["timm", "wrapper"])
def test_blocks_that_are_compiled_and_checkpointed_run_again_as_they_ran(how: str, compiled_first: bool) -> None:
    def checkpoint(model: Any) -> None:
        if how == "timm":
            model.set_grad_checkpointing(True)
        else:
            blocks = list(model.blocks)
            apply_activation_checkpointing(model, check_fn=lambda module: module in blocks)

    def compile_blocks(model: Any) -> None:
        torch._dynamo.reset()
        for block in model.blocks:
            block.compile(fullgraph=True, backend="eager")

    def gradients(*changes: Any) -> list[Tensor]:
        model = model_of().train()
        for change in changes:
            change(model)
        return torch.autograd.grad(model(video()).square().sum(), aim.trainable_parameters(model))

    order = (compile_blocks, checkpoint) if compiled_first else (checkpoint, compile_blocks)
    for one, other in zip(gradients(*order), gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
