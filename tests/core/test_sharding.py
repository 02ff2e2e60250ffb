"""Parts that FSDP2 shards by themselves run by modules where they are called, and are refused where they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torchvision.models import swin_transformer as vision

import aim_adapters as aim
from aim_adapters.errors import StateError
from tests.backbones.cases import process_group, wake
from tests.core.cases import T, model_of, video

__all__ = ["process_group"]

pytestmark = [
    pytest.mark.usefixtures("process_group"),
    pytest.mark.skipif(
        not hasattr(torch.cpu.Stream, "record_event"), reason="this version of torch cannot run FSDP2 on a CPU"
    ),
]


def swin(cls: type[nn.Module]) -> Any:
    size = {"img_size": 16, "patch_size": 4, "window_size": 2, "embed_dim": 16, "depths": (2,), "num_heads": (2,)}
    torch.manual_seed(0)
    return wake(aim.wrap_image_model(cls(**size).double(), T))


def vision_swin() -> Any:
    return aim.wrap_image_model(vision.SwinTransformer([4, 4], 16, [2], [2], [2, 2]).double(), T)


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gradients(model: nn.Module) -> list[Tensor]:
    model.train()(video()).square().sum().backward()
    return [full(parameter.grad) for parameter in aim.trainable_parameters(model)]


def sharded_blocks(model: nn.Module) -> list[Any]:
    blocks = [module for module in model.modules() if hasattr(module, "aim") and hasattr(module.aim, "temporal")]
    for block in blocks:
        fully_shard(block)
    fully_shard(model)
    return blocks


@pytest.mark.parametrize("make", [model_of, lambda: swin(SwinTransformer)])
def test_sharded_blocks_train_without_warnings(make: Callable[[], Any]) -> None:
    model, plain = make(), make()
    sharded_blocks(model)
    for one, other in zip(gradients(model), gradients(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


# A layer by itself may return a view, of which PyTorch warns; what reads it here changes nothing in place.
views = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor:UserWarning")


@views
@pytest.mark.parametrize(
    "path",
    [
        "blocks.1.attn.qkv", "blocks.1.attn.proj", "blocks.1.norm1", "blocks.1.mlp", "blocks.1.mlp.fc2",
        "blocks.1.aim.spatial", "blocks.1.aim.temporal.down_proj", "norm", "norm.aim", "norm.aim.norm", "aim.head",
        "head", "patch_embed", "patch_embed.proj", "norm_pre",
    ],
)  # fmt: skip
def test_what_is_called_may_be_sharded_by_itself(path: str) -> None:
    model, plain = model_of(num_classes=3), model_of(num_classes=3)
    fully_shard(model.get_submodule(path))
    fully_shard(model)
    for one, other in zip(gradients(model), gradients(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@views
@pytest.mark.parametrize(
    ("make", "path", "named"),
    [
        (model_of, "blocks.1.attn", "blocks.1.attn"),
        (model_of, "blocks.1.aim", "blocks.1.aim"),
        (model_of, "aim", "aim"),
        (lambda: swin(SwinTransformer), "layers.0.blocks.0.attn", "blocks.0.attn"),
        (lambda: swin(SwinTransformer), "layers.0.blocks.1.aim", "blocks.1.aim"),
        (lambda: swin(SwinTransformerV2), "layers.0.blocks.0.attn.qkv", "the qkv layer of an attention"),
        (vision_swin, "features.1.0.attn.proj", "the proj layer of an attention"),
    ],
)
def test_what_is_not_called_is_refused_by_name(make: Callable[[], Any], path: str, named: str) -> None:
    model = make()
    part = fully_shard(model.get_submodule(path))
    fully_shard(model)
    with pytest.raises(StateError, match=f"^{named} is sharded by itself.*fully_shard.block."):
        model(video())
    part.unshard()  # FSDP2 would shard it again in the midst of the backward pass
    with pytest.raises(StateError, match="sharded by itself"):
        model(video())


@pytest.mark.parametrize("make", [model_of, lambda: swin(SwinTransformer)])
def test_execution_of_sharded_blocks_is_explained(make: Callable[[], Any]) -> None:
    model = make()
    before = aim.explain_execution(model)
    block = sharded_blocks(model)[0]
    for row in aim.explain_execution(model):
        assert all(word == "-" or "sharded; inside a step" in word for word in row[1:])
    block.unshard()  # as in a step
    assert before[0][1:] == ("fused", "fused", "fused")
    assert aim.explain_execution(model)[0] == before[0]
