"""What is not a tensor is held to the reference too: activation, epsilon, heads, pooling, image size."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from aim_adapters.errors import CheckpointError
from tests.backbones.cases import assert_same, snapshot
from tests.convert.cases import VITS, clip_base, clip_file, load, run, small_swin_file, swin_base, video_of
from tests.oracle import holders
from tests.oracle.reference import CLIP, IMAGENET, run_swin, vit_file
from tests.oracle.test_swin import DEPTHS, HEADS, WINDOW
from tests.oracle.vit import Size, random_weights


def refusal(model: nn.Module, state: Any, **arguments: Any) -> str:
    before = snapshot(model)
    with pytest.raises(CheckpointError) as error:
        load(model, state, **arguments)
    assert_same(before, snapshot(model))
    return str(error.value)


CHANGES = [
    (case, change)
    for case, (size, holder) in VITS.items()
    for change in ({"quick_gelu": not size.quick_gelu}, {"eps": 1e-12}, {"eps": 1.1 * size.eps})
    if holder is not holders.torchvision or "eps" in change  # torchvision has one activation
]


@pytest.mark.parametrize("backbone", ["verify", "fill"])
@pytest.mark.parametrize(("case", "change"), CHANGES, ids=str)
def test_another_activation_or_epsilon_is_refused(case: str, backbone: str, change: dict[str, Any]) -> None:
    size, holder = VITS[case]
    model = holder(random_weights(size), dataclasses.replace(size, **change))
    message = refusal(model, vit_file(random_weights(size), size, 4), backbone=backbone)
    expected = "block 0: mlp (the reference's" if "quick_gelu" in change else f"epsilon is {change['eps']}, the"
    assert expected in message
    assert ("vit_base_patch16_clip_quickgelu_224.openai" in message) == size.pre_norm


def test_an_approximate_gelu_is_refused() -> None:
    model: Any = holders.timm(random_weights(IMAGENET), IMAGENET)
    for block in model.blocks:
        block.mlp.act = nn.GELU(approximate="tanh")
    assert "the exact GELU" in refusal(model, vit_file(random_weights(IMAGENET), IMAGENET, 4))


def test_the_epsilon_of_the_last_norm_counts() -> None:
    model: Any = clip_base()
    model.norm.eps = 1e-2
    assert "norm (its epsilon is 0.01, the reference's 1e-05)" in refusal(model, clip_file())


def test_another_number_of_heads_is_refused() -> None:
    model = holders.timm(random_weights(CLIP), dataclasses.replace(CLIP, heads=4))
    assert "block 0 has 4 heads of width 8, the reference's has 2" in refusal(model, clip_file())
    assert "2 heads of width 16" in refusal(clip_base(), clip_file(), head_width=32)


def test_another_pooling_is_refused() -> None:
    weights = random_weights(IMAGENET)
    model = holders.TimmViT(
        img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2, global_pool="avg"
    )
    holders.fill(model, {k.replace("norm.", "fc_norm.") if k.startswith("norm.") else k: v
                         for k, v in holders.timm(weights, IMAGENET).state_dict().items() if "head" not in k},
                 absent=("head",))  # fmt: skip
    assert "final norm and pooling" in refusal(model, vit_file(weights, IMAGENET, 4))


def test_another_image_size_is_refused() -> None:
    size = dataclasses.replace(CLIP, image=32)
    message = refusal(holders.timm(random_weights(size), size), clip_file())
    assert "position is [5, 32] in the checkpoint and [1, 17, 32] in the model" in message
    assert "image size" in message


def test_swin_on_maps_that_windows_do_not_tile_is_refused() -> None:
    from tests.oracle.test_swin import timm_swin

    assert "without padding" in refusal(timm_swin(40), small_swin_file())


def test_swin_epsilon_and_activation() -> None:
    model: Any = swin_base("timm")
    model.layers[1].blocks[1].norm2.eps = 1e-6
    assert "layers.1.blocks.1.norm2 (its epsilon is 1e-06" in refusal(model, small_swin_file())
    model = swin_base("torchvision")
    model.features[1][0].mlp[1] = nn.GELU(approximate="tanh")
    assert "block 0: mlp" in refusal(model, small_swin_file())


def test_swin_windows_and_merging() -> None:
    model: Any = swin_base("torchvision")
    model.features[1][1].attn.shift_size = [1, 1]
    assert "block 1:" in refusal(model, small_swin_file())
    state = small_swin_file()
    state["backbone.layers.0.blocks.0.attn.relative_position_bias_table"] = torch.zeros(25, 2)
    assert "blocks.0.spatial_bias is [25, 2] in the checkpoint" in refusal(swin_base("timm"), state)


def test_the_default_dtype_does_not_matter() -> None:
    model = swin_base("timm").train()
    state = small_swin_file()
    torch.set_default_dtype(torch.float64)
    try:
        load(model, state, backbone="fill")
    finally:
        torch.set_default_dtype(torch.float32)
    expected = run_swin(state, video_of(8, 32), depths=DEPTHS, heads=HEADS, window=WINDOW)
    torch.testing.assert_close(run(model.eval(), video_of(8, 32)), expected, rtol=1e-10, atol=1e-10)


def test_autocast_around_the_call_does_not_matter() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert not any(load(clip_base().float(), clip_file()))


def test_layers_of_zeros_are_compared_too() -> None:
    state = clip_file()
    for key in state:
        if key.endswith(("out_proj.weight", "out_proj.bias", "c_proj.weight", "c_proj.bias")):
            state[key] = torch.zeros_like(state[key])
    assert not any(load(clip_base(), state, backbone="fill"))


def test_dropout_of_the_model_does_not_matter() -> None:
    model: Any = clip_base().train()
    model.pos_drop.p = model.blocks[0].attn.proj_drop.p = 0.5
    assert not any(load(model, clip_file()))
    assert model.training


def test_a_model_of_another_family_is_refused() -> None:
    other = Size(layer_scale=True, eps=1e-5, quick_gelu=True, pre_norm=True, patch_bias=False)
    assert "only the model has blocks.0.ls1.gamma" in refusal(holders.timm(random_weights(other), other), clip_file())
