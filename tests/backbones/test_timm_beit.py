"""timm's Beit keeps every promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.beit import Beit
from torch import Tensor, nn

from tests.backbones.cases import Case, process_group, with_machinery
from tests.backbones.contract import Contract

__all__ = ["process_group"]

SIZE: dict[str, Any] = {
    "img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5,
}  # fmt: skip
DROPOUT: dict[str, Any] = {
    "drop_rate": 0.5, "pos_drop_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5, "drop_path_rate": 0.5,
}  # fmt: skip


def attend_without_position(block: Any, h: Tensor) -> Tensor:
    with torch.no_grad():
        if block.attn.relative_position_bias_table is not None:
            block.attn.relative_position_bias_table.zero_()
    return block.attn(h)


def member(name: str, **kwargs: Any) -> Case:
    def build(**more: Any) -> Callable[[], nn.Module]:
        return lambda: Beit(**{**SIZE, **kwargs, **more})

    return Case(name, build(), dropout=build(**DROPOUT), plain_attention=attend_without_position)


CASES = [
    member("beit", depth=2, use_rel_pos_bias=True, init_values=0.1, use_abs_pos_emb=False),
    member("shared_bias", use_shared_rel_pos_bias=True, use_abs_pos_emb=False, global_pool="token", swiglu_mlp=True),
    member("no_bias", qkv_bias=False),
]


MACHINERY = ("beit",)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return with_machinery(request.param, MACHINERY)


class TestContract(Contract):
    pass
