"""Attention over frames is divided attention, or AIM's temporal adaptation, of the image model's own weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.recipes import get_recipe
from aim_adapters.training import build_baseline
from tests.backbones.cases import scramble
from tests.tiny import FRAMES, base, video
from tests.training.test_baselines import build, swin


def plain_attention(attention: Any, x: Tensor) -> Tensor:
    """Attend over the second dimension of ``[n, T, D]`` in plain PyTorch."""
    q, k, v = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [n, H, T, d]
    weights = (q @ k.transpose(-2, -1) * attention.head_dim**-0.5).softmax(-1)
    return attention.proj((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("name", ["full-space-time", "lora-temporal"])
def test_blocks_attend_over_frames_first(name: str) -> None:
    model = scramble(build(name).eval())
    image_model: Any = model.image_model
    entry, *passes = model.temporal
    frames = video().flatten(0, 1)
    x = image_model.norm_pre(image_model._pos_embed(image_model.patch_embed(frames)))  # [B*T, N, D]
    x = x.unflatten(0, (-1, FRAMES)) + entry.temporal_embedding.unsqueeze(2)  # [B, T, N, D]
    for block, attend in zip(image_model.blocks, passes, strict=True):
        parts = block if name == "lora-temporal" else attend.copies
        along = parts.norm1(x).transpose(1, 2).flatten(0, 1)  # [B*N, T, D]
        branch = plain_attention(parts.attn, along).unflatten(0, (2, -1)).transpose(1, 2)
        x = x + attend.out(branch)
        tokens = x.flatten(0, 1)
        tokens = tokens + plain_attention(block.attn, block.norm1(tokens))
        x = (tokens + block.mlp(block.norm2(tokens))).unflatten(0, (-1, FRAMES))
    expected = model.head(image_model.norm(x)[:, :, 0].mean(1))
    torch.testing.assert_close(model(video()), expected, rtol=1e-4, atol=1e-5)


def test_the_copies_start_with_the_weights_of_their_block_and_train_apart() -> None:
    model = build("full-space-time")
    for block, attend in zip(model.image_model.blocks, model.temporal[1:], strict=True):
        for copied, own in ((attend.copies.attn, block.attn), (attend.copies.norm1, block.norm1)):
            assert all(torch.equal(value, own.state_dict()[key]) for key, value in copied.state_dict().items())
            assert all(p is not q for p, q in zip(copied.parameters(), own.parameters(), strict=True))
        assert not any(p.any() for p in attend.out.parameters())


def test_what_attention_over_frames_does_not_read_does_not_train() -> None:
    model: Any = build("full-space-time", lambda: timm.create_model(
        "beit_base_patch16_224", img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2
    ))  # fmt: skip
    fixed = {key for key, p in model.named_parameters() if not p.requires_grad}
    assert fixed == {f"temporal.{i}.copies.attn.relative_position_bias_table" for i in (1, 2)}


def test_it_counts_what_table_1_counts() -> None:
    with torch.device("meta"):
        image_model = timm.create_model("vit_base_patch16_224.augreg_in21k")
        model = build_baseline("full-space-time", model=image_model, num_classes=174)
    assert round(sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6) == 121


@pytest.mark.parametrize("name", ["full-space-time", "lora-temporal"])
def test_windows_are_refused_and_nothing_is_changed(name: str) -> None:
    model = swin()
    before: list[nn.Module] = list(model.modules())
    with pytest.raises(aim.UnsupportedModelError, match="plain vision transformer"):
        build_baseline(name, model=scramble(model), num_classes=3)
    assert before == list(model.modules()) and not any(module._forward_pre_hooks for module in before)


def test_a_block_that_runs_twice_is_refused() -> None:
    model = base()
    model.blocks[1] = model.blocks[0]
    with pytest.raises(aim.UnsupportedModelError, match="one block at several depths"):
        build_baseline("full-space-time", model=model, num_classes=3)


def test_adapters_are_those_of_the_recipe() -> None:
    recipe = dataclasses.replace(get_recipe("small-data"), adapter_activation="none")
    assert all(attend.out.linear for attend in build("lora-temporal", recipe=recipe).temporal[1:])


def test_with_tubelets_there_are_fewer_positions() -> None:
    recipe = dataclasses.replace(get_recipe("small-data"), tubelet_size=2)
    for name in ("full-space-time", "attentive-probe"):
        model = build_baseline(name, model=base(), num_classes=3, num_frames=FRAMES, recipe=recipe)
        assert model(video()).shape == (2, 3)
