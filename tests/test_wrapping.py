"""Wrapping validates everything first, takes every option, and works in an ordinary training loop."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import aim_adapters as aim
from aim_adapters.backbones import read_anatomy
from aim_adapters.errors import ConfigError, InputError, StateError
from tests.backbones.contract import assert_same, scramble, snapshot, wake

T = 4
SIZE: dict[str, Any] = {
    "img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5,
}  # fmt: skip


def image_model(**kwargs: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(**{**SIZE, **kwargs})


def video(clips: int = 2, frames: int = T, channels: int = 3) -> torch.Tensor:
    return torch.randn(clips, frames, channels, 16, 16, generator=torch.Generator().manual_seed(1))


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
        ({"layers": [4]}, "block 4, but the model has 4 blocks"),
        ({"layers": [-5]}, "block -5"),
        ({"layers": 3}, "layers"),
        ({"layers": "top"}, "top_half"),
        ({"layers": []}, "non-empty"),
        ({"layers": [1, -3]}, "twice"),
        ({"components": "temporal"}, "components"),
        ({"components": ["time"]}, "'time'"),
        ({"num_classes": -1}, "num_classes"),
        ({"tubelet_size": 3}, "multiple of tubelet_size"),
        ({"attention": "flash"}, "'sdpa'"),
        ({"input_layout": "TCHW"}, "'BTCHW'"),
    ],
)
def test_a_wrong_setting_is_named_and_changes_nothing(kwargs: dict[str, Any], text: str) -> None:
    model = image_model()
    before = snapshot(model)
    with pytest.raises(ConfigError, match=text):
        aim.wrap_image_model(model, **{"num_frames": T, **kwargs})
    assert_same(before, snapshot(model))
    aim.wrap_image_model(model, T)


def test_a_kernel_that_is_not_there_is_refused_and_never_replaced(no_triton: None) -> None:
    model = image_model()
    with pytest.raises(aim.UnsupportedKernelError, match="'triton' was asked for, but Triton's kernels need a GPU"):
        aim.wrap_image_model(model, T, attention="triton")
    assert not aim.is_wrapped(model)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((2, 5, 3, 16, 16), r"4 frames and 3 channels, got \[2, 5, 3, 16, 16\]"),
        ((2, 4, 1, 16, 16), r"4 frames and 3 channels, got \[2, 4, 1, 16, 16\]"),
        ((7, 3, 16, 16), r"multiple of 4\), got \[7, 3, 16, 16\]"),
        ((8, 1, 16, 16), r"3 channels"),
        ((4, 16, 16), r"got \[4, 16, 16\]"),
    ],
)
def test_a_clip_that_does_not_fit_is_refused(shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(InputError, match=text):
        aim.wrap_image_model(image_model(), T)(torch.randn(shape))


def test_an_ambiguous_layout_asks_which() -> None:
    model, clips = wake(aim.wrap_image_model(image_model(), 3)).eval(), video(frames=3)
    with pytest.raises(InputError, match=r"ambiguous.*'BTCHW' or 'BCTHW'"):
        model(clips)
    expected = model(clips.flatten(0, 1))
    for layout, given in (("BTCHW", clips), ("BCTHW", clips.transpose(1, 2))):
        other = image_model()
        aim.wrap_image_model(other, 3, input_layout=layout)
        aim.load_adapter_state_dict(other, aim.adapter_state_dict(model))
        assert torch.equal(other.eval()(given), expected)


def test_one_block_at_several_depths_is_refused() -> None:
    model = image_model()
    model.blocks[2] = model.blocks[1]
    with pytest.raises(aim.UnsupportedModelError, match="several depths"):
        aim.wrap_image_model(model, T)


def test_an_attribute_of_our_name_is_refused() -> None:
    model = image_model()
    model.blocks[0].aim = nn.Identity()
    with pytest.raises(aim.UnsupportedModelError, match=r"'blocks\.0'"):
        aim.wrap_image_model(model, T)


def test_what_is_not_wrapped_cannot_be_unwrapped_or_disabled() -> None:
    for call in (aim.unwrap_image_model, aim.trainable_parameters, aim.adapter_state_dict, aim.count_parameters):
        with pytest.raises(StateError, match="not wrapped"):
            call(image_model())
    with pytest.raises(StateError, match="not wrapped"), aim.disable_adapters(image_model()):
        pass


def test_several_wrapped_models_are_told_apart() -> None:
    pair = nn.ModuleList([aim.wrap_image_model(image_model(), T), aim.wrap_image_model(image_model(), T)])
    with pytest.raises(StateError, match="one by one"):
        aim.unwrap_image_model(pair)
    aim.unwrap_image_model(pair[0])
    aim.unwrap_image_model(pair)
    assert not aim.is_wrapped(pair)


def test_disable_adapters_nests_and_survives_errors() -> None:
    model, clips = wake(aim.wrap_image_model(image_model(), T)).eval(), video()
    adapted = model(clips)
    with pytest.raises(RuntimeError, match="inside"), aim.disable_adapters(model), aim.disable_adapters(model):
        frozen = model(clips)
        raise RuntimeError("inside")
    assert torch.equal(model(clips), adapted)
    assert not torch.allclose(frozen, adapted)


@pytest.mark.parametrize(("num_classes", "width"), [(None, 5), (7, 7), (0, 32)])
def test_outputs(num_classes: int | None, width: int) -> None:
    model = image_model()
    aim.wrap_image_model(model, T, num_classes=num_classes)
    assert model(video()).shape == (2, width)
    assert ("head.weight" in aim.adapter_state_dict(model)) == (num_classes != 0)
    with aim.disable_adapters(model):
        assert model(video()).shape == (2, 5)


def test_features_are_those_the_image_model_pools() -> None:
    model = image_model().eval()
    with torch.no_grad():
        frames = model.forward_head(model.forward_features(video().flatten(0, 1)), pre_logits=True)
        aim.wrap_image_model(model, T, num_classes=0)
        torch.testing.assert_close(model(video()), frames.unflatten(0, (2, T)).mean(1), rtol=1e-5, atol=1e-6)


def test_new_head_starts_as_the_reference_does() -> None:
    head = aim.wrap_image_model(image_model(), T, num_classes=4000).get_submodule("aim.head")
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not head.bias.any()


def test_head_dropout_acts_in_training_only() -> None:
    model, clips = aim.wrap_image_model(image_model(), T, head_dropout=0.5), video()
    assert not torch.equal(model.train()(clips), model(clips))
    assert torch.equal(model.eval()(clips), model(clips))


def test_norm_stays_frozen_on_request() -> None:
    model = aim.wrap_image_model(image_model(), T, train_norm=False)
    assert not any(key.startswith("norm") for key in aim.adapter_state_dict(model))
    assert type(model.norm) is type(image_model().norm)


def test_frozen_space_only_model_trains_its_head_alone() -> None:
    model, clips = aim.wrap_image_model(image_model(), T, components=(), train_norm=False, num_classes=7), video()
    assert set(aim.adapter_state_dict(model)) == {"head.weight", "head.bias"}
    torch.testing.assert_close(model(clips), model(clips.flip(1)), rtol=1e-4, atol=1e-6)


def test_adapted_layers() -> None:
    for layers, expected in (("all", [0, 1, 2, 3]), ("bottom_half", [0, 1]), ("top_half", [2, 3]), ((-1, 0), [0, 3])):
        model = aim.wrap_image_model(image_model(), T, layers=layers)
        assert [i for i, block in enumerate(model.blocks) if hasattr(block, "aim")] == expected


def test_types_names_and_signature_stay_those_of_the_image_model() -> None:
    model = image_model()
    signature, block = inspect.signature(model.forward), type(model.blocks[0])
    aim.wrap_image_model(model, T)
    assert isinstance(model, VisionTransformer)
    assert isinstance(model.blocks[0], block)
    assert type(model).__name__ == "VisionTransformer"
    assert type(model.blocks[0]) is type(model.blocks[1])
    assert inspect.signature(model.forward) == signature
    assert "AIM(VisionTransformer)" in repr(model)


def test_hooks_of_the_image_model_survive() -> None:
    model, seen = image_model(), []
    model.blocks[1].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    aim.wrap_image_model(model, T)(video())
    assert seen == [(2 * T, 5, 32)]


def test_data_parallel_replicas_are_refused() -> None:
    model = aim.wrap_image_model(image_model(), T)
    replica = model._replicate_for_data_parallel()
    with pytest.raises(StateError, match="DistributedDataParallel"):
        replica(video())


def test_unwrap_restores_the_mode_the_caller_set_meanwhile() -> None:
    model = image_model().train()
    model.patch_embed.eval()
    aim.wrap_image_model(model, T)
    aim.unwrap_image_model(model)
    assert model.training
    assert not model.patch_embed.training
    aim.wrap_image_model(model, T).eval()
    assert not any(module.training for module in aim.unwrap_image_model(model).modules())


def test_new_parts_follow_the_matrices_not_the_norms() -> None:
    model = image_model().to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()
    aim.wrap_image_model(model, T, num_classes=3)
    state = aim.adapter_state_dict(model)
    assert {t.dtype for key, t in state.items() if not key.startswith("norm")} == {torch.bfloat16}
    assert state["norm.weight"].dtype == torch.float32


def test_a_plain_training_loop_learns_order() -> None:
    """AdamW, autocast, gradient accumulation and an EMA copy, on clips told apart by the order of frames alone."""
    torch.manual_seed(0)
    model = scramble(image_model())
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


def test_base_weights_loaded_after_wrapping_reach_untrained_copies() -> None:
    other = scramble(image_model()).eval()
    clips = video()
    with torch.no_grad():
        expected = other(clips.flatten(0, 1)).unflatten(0, (2, T)).mean(1)
        model = aim.wrap_image_model(image_model(), T).eval()
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(model(clips), expected, rtol=1e-5, atol=1e-6)
        wake(model)
        trained = {key: tensor.clone() for key, tensor in aim.adapter_state_dict(model).items()}
        model.load_state_dict(image_model().state_dict())
    assert all(torch.equal(tensor, trained[key]) for key, tensor in aim.adapter_state_dict(model).items())


def test_a_forward_of_its_own_is_refused() -> None:
    model = image_model()
    block = model.blocks[1]
    block.forward = block.forward
    with pytest.raises(StateError, match=r"blocks\.1 is given a forward of its own"):
        aim.wrap_image_model(model, T)
    del block.forward
    aim.wrap_image_model(model, T)
    model.blocks[1].forward = model.blocks[1].forward
    with pytest.raises(StateError, match="forward of its own"):
        aim.unwrap_image_model(model)


def test_several_models_train_together() -> None:
    pair = nn.ModuleList([aim.wrap_image_model(image_model(), T), aim.wrap_image_model(image_model(), T)])
    alone = len(aim.trainable_parameters(pair[0]))
    assert len(aim.trainable_parameters(pair)) == 2 * alone
    assert sum(len(group["params"]) for group in aim.adapter_param_groups(pair, weight_decay=0.1)) == 2 * alone
    assert aim.count_parameters(pair).trainable == 2 * aim.count_parameters(pair[0]).trainable


def test_a_layer_in_place_of_the_packed_projection_is_called() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = image_model()
    model.blocks[0].attn.qkv.__class__ = Doubled
    attention = model.blocks[0].attn
    h = torch.randn(2, 5, 32)
    q, k, v = read_anatomy(model).blocks[0][1].project_qkv(attention, h)
    assert torch.equal(torch.stack([q, k, v], 2).flatten(2), attention.qkv(h))


def test_hooks_of_norm_and_head_fire_once() -> None:
    model, seen = image_model(), []
    for module in (model.norm, model.head):
        module.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    aim.wrap_image_model(model, T)(video())
    assert seen == [(2 * T, 5, 32), (2, 5)]


def test_a_head_put_in_after_wrapping_is_refused() -> None:
    model = aim.wrap_image_model(image_model(), T)
    model.head = nn.Linear(32, 7)
    with pytest.raises(StateError, match="'head' was replaced after wrapping"):
        model.train()


def test_wrapping_in_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(StateError, match="inference_mode"):
        aim.wrap_image_model(image_model(), T)


def test_a_copy_made_while_adapters_are_disabled_has_them() -> None:
    model, clips = wake(aim.wrap_image_model(image_model(), T)).eval(), video()
    with aim.disable_adapters(model):
        copied = copy.deepcopy(model)
    assert torch.equal(copied(clips), model(clips))
