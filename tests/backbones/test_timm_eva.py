"""timm's Eva keeps every promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.eva import Eva
from torch import nn

from tests.backbones.cases import Case, process_group, with_machinery
from tests.backbones.contract import Contract

__all__ = ["process_group"]

SIZE: dict[str, Any] = {
    "img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5,
}  # fmt: skip
DROPOUT: dict[str, Any] = {
    "drop_rate": 0.5, "pos_drop_rate": 0.5, "patch_drop_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5,
    "drop_path_rate": 0.5,
}  # fmt: skip


def member(name: str, **kwargs: Any) -> Case:
    def build(**more: Any) -> Callable[[], nn.Module]:
        return lambda: Eva(**{**SIZE, **kwargs, **more})

    return Case(name, build(), dropout=build(**DROPOUT), mask={"attn_mask": torch.zeros(5, 5)})


CASES = [
    member("eva_layer_scale", init_values=0.1, global_pool="avg"),
    member(
        "eva02_rotary_swiglu_norms", depth=2, use_rot_pos_emb=True, swiglu_mlp=True, scale_mlp=True, qkv_fused=False,
    ),
    member("post_norm", use_post_norm=True),
    member(
        "dinov3", depth=2, use_rot_pos_emb=True, rope_type="dinov3", use_abs_pos_emb=False, qkv_bias=False,
        init_values=0.1, num_reg_tokens=2, rope_rotate_half=True, global_pool="avg", use_fc_norm=False,
    ),
    member(
        "perception_encoder", attn_type="rope", use_rot_pos_emb=True, use_pre_transformer_norm=True, global_pool="map",
        scale_attn_inner=True,
    ),
    member(
        "grouped_heads", attn_type="rope", use_rot_pos_emb=True, qkv_fused=False, num_heads=4, num_kv_heads=2,
        qk_norm=True,
    ),
    member("mixed_rotary", attn_type="rope", use_rot_pos_emb=True, rope_type="mixed"),
]  # fmt: skip


MACHINERY = ("eva02_rotary_swiglu_norms", "dinov3")


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return with_machinery(request.param, MACHINERY)


class TestContract(Contract):
    pass
