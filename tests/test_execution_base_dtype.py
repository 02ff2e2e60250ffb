"""What is frozen is held in the dtype that was asked for, and what trains stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from timm.models.swin_transformer import SwinTransformer

import aim_adapters as aim
from aim_adapters.errors import ConfigError
from tests.tiny import FRAMES as T
from tests.tiny import base, trained, video

BF16 = torch.bfloat16


@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32], ids=str)
def test_only_what_is_frozen_is_held_in_another_dtype(dtype: torch.dtype) -> None:
    model = trained()
    aim.add_adapter(model, "idle", aim.AIMConfig(num_frames=T))
    ours = {name: p for name, p in model.named_parameters() if ".aim." in f".{name}"}
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    aim.set_base_dtype(model, dtype)
    for name, parameter in model.named_parameters():
        if name in ours:
            assert parameter is ours[name]
            assert torch.equal(parameter, values[name])
        else:
            assert parameter.dtype == dtype
            assert torch.equal(parameter, values[name].to(dtype))
            assert not parameter.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, "bfloat16", None], ids=str)
def test_other_dtypes_are_refused(dtype: Any) -> None:
    model = trained()
    with pytest.raises(ConfigError, match=r"dtype must be torch\.float32, torch\.bfloat16, torch\.float16, got"):
        aim.set_base_dtype(model, dtype)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_weights_of_the_image_model_that_train_stay_as_they_are() -> None:
    model = trained()
    model.blocks[0].mlp.fc1.weight.requires_grad_()
    aim.set_base_dtype(model, BF16)
    assert model.blocks[0].mlp.fc1.weight.dtype == torch.float32
    assert model.blocks[0].mlp.fc2.weight.dtype == BF16


def test_buffers_stay_as_they_are() -> None:
    swin = SwinTransformer(
        img_size=16, patch_size=4, embed_dim=16, depths=(2,), num_heads=(2,), window_size=2, num_classes=5
    )
    model = aim.wrap_image_model(swin, T)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert before
    aim.set_base_dtype(model, BF16)
    for name, buffer in model.named_buffers():
        assert buffer.dtype == before[name].dtype
        assert torch.equal(buffer, before[name])


def test_of_a_whole_clip_the_image_tower_changes() -> None:
    vision = CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=16)
    model = CLIP(12, vision, CLIPTextCfg(context_length=8, vocab_size=50, width=16, heads=2, layers=1))
    aim.wrap_image_model(model, T)
    text = {name: p.dtype for name, p in model.named_parameters() if not name.startswith("visual.")}
    aim.set_base_dtype(model, BF16)
    assert text == {name: p.dtype for name, p in model.named_parameters() if not name.startswith("visual.")}
    assert model.visual.conv1.weight.dtype == BF16


@pytest.mark.parametrize("autocast", [True, False])
def test_tokens_between_blocks_have_the_dtype_of_the_weights(autocast: bool) -> None:
    model, seen = trained(), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", BF16, enabled=autocast):
        model(video())
    assert set(seen) == {torch.float32}
    seen.clear()
    aim.set_base_dtype(model, BF16)
    with torch.autocast("cpu", BF16):
        out = model(video())
        assert {row[1:] for row in aim.explain_execution(model)} == {("fused",) * 3}
    assert set(seen) == {BF16}
    out.float().square().sum().backward()
    assert {p.grad.dtype for p in aim.trainable_parameters(model)} == {torch.float32}


@pytest.mark.parametrize("fused", ["auto", True, False])
def test_rounded_weights_give_nearly_the_same(fused: Any) -> None:
    model = trained()
    with torch.no_grad():
        expected = model(video())
        aim.set_execution(model, fused=fused)
        aim.set_base_dtype(model, BF16)
        with torch.autocast("cpu", BF16):
            out = model(video()).float()
    assert 0 < (out - expected).norm() < 0.03 * expected.norm()


def test_adapters_made_later_are_held_as_the_one_that_runs(tmp_path: Path) -> None:
    other = trained(num_classes=7)
    aim.save_adapters(other, tmp_path)
    expected = aim.adapter_state_dict(other)
    model = trained()
    aim.set_base_dtype(model, BF16)
    aim.add_adapter(model, "new", aim.AIMConfig(num_frames=T))
    aim.set_adapter(model, "new")
    state = aim.adapter_state_dict(model)
    assert {"norm.weight", "head.bias", "blocks.0.temporal.up_proj.weight", "temporal_embedding"} <= state.keys()
    assert {t.dtype for t in state.values()} == {torch.float32}
    aim.load_adapters(model, tmp_path, name="loaded")
    aim.set_adapter(model, "loaded")
    for key, tensor in aim.adapter_state_dict(model).items():
        assert torch.equal(tensor, expected[key]), key  # so also of the same dtype


def test_norms_held_wider_than_the_adapters_stay_so() -> None:
    """As CLIP's loaders in low precision hold them."""
    model = base().to(BF16)
    model.norm.float()
    aim.wrap_image_model(model, T)
    aim.add_adapter(model, "new", aim.AIMConfig(num_frames=T))
    states = []
    for name in ("default", "new"):
        aim.set_adapter(model, name)
        states.append({key: t.dtype for key, t in aim.adapter_state_dict(model).items()})
    assert states[0] == states[1]
    assert states[0]["norm.weight"] == torch.float32
    assert states[0]["head.weight"] == BF16


def test_adapters_load_bit_exactly_into_rounded_weights_and_back(tmp_path: Path) -> None:
    model, rounded = trained(), base()
    aim.save_adapters(model, tmp_path / "a")
    aim.wrap_image_model(rounded, T)
    aim.set_base_dtype(rounded, BF16)
    assert not any(aim.load_adapters(rounded, tmp_path / "a"))
    aim.save_adapters(rounded, tmp_path / "b")
    ours, theirs = aim.adapter_state_dict(model), aim.adapter_state_dict(rounded)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    fresh = base()
    aim.load_adapters(fresh, tmp_path / "b")
    assert all(torch.equal(ours[key], t) for key, t in aim.adapter_state_dict(fresh).items())


def test_it_cannot_be_undone() -> None:
    model = trained()
    exact = model.blocks[0].attn.qkv.weight.clone()
    aim.set_base_dtype(model, BF16)
    aim.set_base_dtype(model, torch.float32)
    aim.unwrap_image_model(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.blocks[0].attn.qkv.weight, exact.to(BF16).float())


def test_a_base_checkpoint_loads_afterwards() -> None:
    state = {name: t + 1 for name, t in base().state_dict().items()}
    model = trained()
    aim.set_base_dtype(model, BF16)
    model.load_state_dict(state, strict=True)
    assert all(torch.equal(model.state_dict()[name], t.to(BF16)) for name, t in state.items())


def test_training_goes_on_with_the_same_optimizer() -> None:
    model = trained().train()
    optimizer = torch.optim.AdamW(aim.trainable_parameters(model), lr=1e-3)
    losses = []
    for step in range(4):
        if step == 2:
            aim.set_base_dtype(model, BF16)
        with torch.autocast("cpu", BF16):
            loss = model(video()).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
