"""An adapter is built whole, where and as wide as the settings say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import aim_adapters as aim
from tests.tiny import FRAMES as T
from tests.tiny import base, video, wrapped


def test_one_block_at_several_depths_is_refused() -> None:
    model = base()
    model.blocks[2] = model.blocks[1]
    with pytest.raises(aim.UnsupportedModelError, match="several depths"):
        aim.wrap_image_model(model, T)


def test_new_head_starts_as_the_reference_does() -> None:
    head = wrapped(num_classes=4000).get_submodule("aim.head")
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not head.bias.any()


def test_norm_stays_frozen_on_request() -> None:
    model = wrapped(train_norm=False)
    assert not any(key.startswith("norm") for key in aim.adapter_state_dict(model))
    assert type(model.norm) is type(base().norm)


def test_frozen_space_only_model_trains_its_head_alone() -> None:
    model, clips = wrapped(components=(), train_norm=False, num_classes=7), video()
    assert set(aim.adapter_state_dict(model)) == {"head.weight", "head.bias"}
    torch.testing.assert_close(model(clips), model(clips.flip(1)), rtol=1e-4, atol=1e-6)


def test_adapted_layers() -> None:
    for layers, expected in (("all", [0, 1, 2, 3]), ("bottom_half", [0, 1]), ("top_half", [2, 3]), ((-1, 0), [0, 3])):
        model = aim.wrap_image_model(base(depth=4), T, layers=layers)
        assert [i for i, block in enumerate(model.blocks) if hasattr(block, "aim")] == expected


def test_new_parts_follow_the_matrices_not_the_norms() -> None:
    model = base().to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()
    aim.wrap_image_model(model, T, num_classes=3)
    state = aim.adapter_state_dict(model)
    assert {t.dtype for key, t in state.items() if not key.startswith("norm")} == {torch.bfloat16}
    assert state["norm.weight"].dtype == torch.float32
