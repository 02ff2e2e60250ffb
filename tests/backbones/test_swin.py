"""Swin Transformers of timm and torchvision, version 1 and 2, keep every promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn
from torchvision.models import swin_transformer as torchvision_swin

from tests.backbones.cases import Case, process_group, with_machinery
from tests.backbones.contract import Contract

__all__ = ["process_group"]

SIZE: dict[str, Any] = {
    "img_size": 32, "patch_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4,
    "num_classes": 5,
}  # fmt: skip
DROPOUT: dict[str, Any] = {"drop_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5, "drop_path_rate": 0.5}


def one_window(block: Any, h: Tensor) -> Tensor:
    """Run the windowed attention of timm or torchvision on tokens that fill one window, without position bias."""
    attn = block.attn
    if hasattr(attn, "cpb_mlp"):  # version 2 computes its bias; equal inputs make it one constant
        attn.relative_coords_table.zero_()
    else:
        with torch.no_grad():
            attn.relative_position_bias_table.zero_()
    if isinstance(attn, torchvision_swin.ShiftedWindowAttention):
        attn.shift_size = [0, 0]
        return attn(h)
    return attn(h.flatten(1, 2)).view(h.shape)


def timm_swin(name: str, cls: type[nn.Module] = SwinTransformer, image_size: int = 32, **kwargs: Any) -> Case:
    def build(**more: Any) -> Callable[[], nn.Module]:
        return lambda: cls(**{**SIZE, "img_size": image_size, **kwargs, **more})

    return Case(
        name, build(), image_size=image_size, dropout=build(**DROPOUT), plain_attention=one_window, tokens=(4, 4)
    )


def vision_swin(name: str, version: int, image_size: int = 32) -> Case:
    block = torchvision_swin.SwinTransformerBlock if version == 1 else torchvision_swin.SwinTransformerBlockV2
    merging = torchvision_swin.PatchMerging if version == 1 else torchvision_swin.PatchMergingV2

    def build(**more: Any) -> Callable[[], nn.Module]:
        return lambda: torchvision_swin.SwinTransformer(
            [4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5, block=block, downsample_layer=merging, **more
        )

    dropout = build(dropout=0.5, attention_dropout=0.5, stochastic_depth_prob=0.5)
    return Case(
        name, build(), image_size=image_size, dropout=dropout, plain_attention=one_window, tokens=(4, 4),
        checkpoints=False,
    )  # fmt: skip


CASES = [
    timm_swin("timm_v1"),
    timm_swin("timm_v1_windows_do_not_divide", image_size=36),
    timm_swin("timm_v1_narrow_heads", head_dim=4),
    timm_swin("timm_v2", SwinTransformerV2),
    vision_swin("torchvision_v1", 1),
    vision_swin("torchvision_v1_windows_do_not_divide", 1, image_size=36),
    vision_swin("torchvision_v2", 2),
]


MACHINERY = ("timm_v1", "torchvision_v2")


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return with_machinery(request.param, MACHINERY)


class TestContract(Contract):
    pass
