"""Wrapping validates everything first, takes every option, and works in an ordinary training loop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

import aim_adapters as aim
from aim_adapters.errors import ConfigError, StateError
from tests.backbones.cases import assert_same, snapshot
from tests.core.cases import LowRank
from tests.tiny import FRAMES as T
from tests.tiny import base, trained, video


@pytest.mark.parametrize("call", [aim.wrap_image_model, aim.is_wrapped, aim.unwrap_image_model, aim.count_parameters])
@pytest.mark.parametrize("thing", [None, "vit", VisionTransformer, torch.zeros(1)])
def test_not_a_module(call: Any, thing: Any) -> None:
    with pytest.raises(TypeError, match=rf"torch\.nn\.Module, got {type(thing).__name__}"):
        call(thing, *([8] if call is aim.wrap_image_model else []))


def test_a_convolutional_network_is_refused_by_name() -> None:
    model = timm.create_model("resnet18")
    before = snapshot(model)
    with pytest.raises(aim.UnsupportedModelError) as error:
        aim.wrap_image_model(model, 8)
    for part in (
        "timm.models.resnet.ResNet",
        "timm.models.resnet.BasicBlock",
        "timm_vit",
        "nearest",
        "register_backbone",
    ):
        assert part in str(error.value)
    assert isinstance(error.value, ValueError)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"num_frames": 0}, "num_frames must be an integer >= 1, got 0"),
        ({"num_frames": -1}, "num_frames"),
        ({"num_frames": 8.0}, r"num_frames must be an integer >= 1, got 8\.0 of type float"),
        ({"num_frames": True}, "num_frames"),
        ({"num_frames": "8"}, "num_frames"),
        ({"bottleneck": 0}, "bottleneck"),
        ({"bottleneck": 0.01}, r"bottleneck=0\.01 gives adapters of width .* = 0 on a block of width 32"),
        ({"layers": [3]}, "block 3, but the model has 3 blocks"),
        ({"layers": [-4]}, "block -4"),
        ({"layers": 3}, "layers"),
        ({"layers": "top"}, "top_half"),
        ({"layers": []}, "non-empty"),
        ({"layers": [1, -2]}, "twice"),
        ({"components": "temporal"}, "components"),
        ({"components": ["time"]}, "'time'"),
        ({"num_classes": -1}, "num_classes"),
        ({"tubelet_size": 3}, "multiple of tubelet_size"),
        ({"attention": "flash"}, "'sdpa'"),
        ({"input_layout": "TCHW"}, "'BTCHW'"),
    ],
)
def test_a_wrong_setting_is_named_and_changes_nothing(kwargs: dict[str, Any], text: str) -> None:
    model = base()
    before = snapshot(model)
    with pytest.raises(ConfigError, match=text):
        aim.wrap_image_model(model, **{"num_frames": T, **kwargs})
    assert_same(before, snapshot(model))
    aim.wrap_image_model(model, T)


def test_a_kernel_that_is_not_there_is_refused_and_never_replaced(no_triton: None) -> None:
    model = base()
    with pytest.raises(aim.UnsupportedKernelError, match="'triton' was asked for, but Triton's kernels need a GPU"):
        aim.wrap_image_model(model, T, attention="triton")
    assert not aim.is_wrapped(model)


def test_what_is_not_wrapped_cannot_be_unwrapped_or_disabled() -> None:
    for call in (aim.unwrap_image_model, aim.trainable_parameters, aim.adapter_state_dict, aim.count_parameters):
        with pytest.raises(StateError, match="not wrapped"):
            call(base())


def test_unwrap_restores_the_mode_the_caller_set_meanwhile() -> None:
    model = base().train()
    model.patch_embed.eval()
    aim.wrap_image_model(model, T)
    aim.unwrap_image_model(model)
    assert model.training
    assert not model.patch_embed.training
    aim.wrap_image_model(model, T).eval()
    assert not any(module.training for module in aim.unwrap_image_model(model).modules())


def test_a_plain_training_loop_learns_order() -> None:
    """AdamW, autocast, gradient accumulation and an EMA copy, on clips told apart by the order of frames alone."""
    torch.manual_seed(0)
    model = base()
    aim.wrap_image_model(model, T, num_classes=2, drop_path=0.1, head_dropout=0.1)
    groups = aim.adapter_param_groups(model, weight_decay=0.05)
    optimizer = torch.optim.AdamW(groups, lr=5e-3)
    ema = copy.deepcopy(model).eval()
    ramp = torch.linspace(-1, 1, T).view(1, T, 1, 1, 1)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}

    def batch(clips: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(0, 2, (clips,))
        direction = (2 * labels - 1).view(-1, 1, 1, 1, 1)
        return torch.randn(clips, 1, 3, 16, 16) * 0.3 + ramp * direction, labels

    model.train()
    for _ in range(48):
        for _ in range(2):
            clips, labels = batch(16)
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(clips), labels) / 2
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for ours, theirs in zip(aim.trainable_parameters(ema), aim.trainable_parameters(model), strict=True):
                ours.lerp_(theirs, 0.1)
    clips, labels = batch(64)
    with torch.no_grad():
        for trained in (model.eval(), ema):
            assert (trained(clips).argmax(1) == labels).float().mean() > 0.95
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in frozen.items())


def test_a_copy_made_while_adapters_are_disabled_has_them() -> None:
    model, clips = trained(), video()
    with aim.disable_adapters(model):
        copied = copy.deepcopy(model)
    assert torch.equal(copied(clips), model(clips))


def test_adapters_in_float16_are_warned_about_and_the_cure_trains() -> None:
    with pytest.warns(UserWarning, match=r"GradScaler refuses.*aim\.set_base_dtype\(model, torch\.float16\)") as caught:
        model = aim.wrap_image_model(base().half(), T)
    assert [warning.filename for warning in caught] == [__file__]
    assert {p.dtype for p in aim.trainable_parameters(model)} == {torch.float16}
    cured = aim.wrap_image_model(base(), T)
    aim.set_base_dtype(cured, torch.float16)
    optimizer = torch.optim.SGD(aim.trainable_parameters(cured), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    with torch.autocast("cpu", torch.float16):
        loss = cured(video()).sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)


def test_layers_of_another_tool_that_wrapping_freezes_are_named() -> None:
    model = base()
    model.blocks[0].mlp.fc1 = LowRank(model.blocks[0].mlp.fc1)
    before = snapshot(model)
    with pytest.warns(UserWarning, match=r"wrapping freezes .*: blocks\.0\.mlp\.fc1\.lora_a, .*merge_and_unload"):
        aim.wrap_image_model(model, T)
    assert_same(before, snapshot(aim.unwrap_image_model(model)))
    model.blocks[0].mlp.fc1.requires_grad_(False)
    model.patch_embed.requires_grad_(False)  # a user's own choice of what trains needs no words
    aim.wrap_image_model(model, T)


def test_layers_of_peft_are_named() -> None:
    peft = pytest.importorskip("peft")
    for settings in (
        peft.LoraConfig(r=2, target_modules=["fc1"]),
        peft.IA3Config(target_modules=["fc1"], feedforward_modules=[]),
    ):
        model = base()
        peft.get_peft_model(model, settings)
        with pytest.warns(UserWarning, match=r"wrapping freezes .*: blocks\.0\.mlp\.fc1\.\w+\.default"):
            aim.wrap_image_model(model, T)
