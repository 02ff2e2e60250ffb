"""open_clip's towers and whole CLIP models keep every promise, and what cannot is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.timm_model import TimmModel
from open_clip.transformer import Attention, VisionTransformer
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.errors import StateError
from tests.backbones.cases import FRAMES, Case, loss, process_group, wake, with_machinery
from tests.backbones.contract import Contract

__all__ = ["process_group"]

SIZE: dict[str, Any] = {
    "image_size": 16, "patch_size": 8, "width": 32, "layers": 3, "heads": 2, "mlp_ratio": 4.0, "output_dim": 12,
}  # fmt: skip
TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
TIMM = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


def tower(name: str, **kwargs: Any) -> Case:
    def build(**more: Any) -> Callable[[], nn.Module]:
        return lambda: VisionTransformer(**{**SIZE, **kwargs, **more})

    return Case(name, build(), dropout=build(patch_dropout=0.5))


def timm_model(**kwargs: Any) -> nn.Module:
    """Build a timm tower as open_clip does, around a tiny model instead of one by name."""
    trunk_kwargs = {key: kwargs.pop(key) for key in ("global_pool", "class_token", "proj_drop_rate") if key in kwargs}

    def create(name: str, pretrained: bool = False, **more: Any) -> nn.Module:
        trunk = TimmViT(**{**TIMM, **trunk_kwargs, **more})
        trunk.default_cfg = {}
        return trunk

    with mock.patch.object(timm, "create_model", create):
        model = TimmModel("tiny", embed_dim=12, image_size=16, **kwargs)
    return model


def clip(cls: type[CLIP | CustomTextCLIP] = CLIP, text: dict[str, Any] | None = None) -> nn.Module:
    vision = CLIPVisionCfg(layers=3, width=32, head_width=16, patch_size=8, image_size=16)
    return cls(12, vision, CLIPTextCfg(**TEXT, **(text or {})), quick_gelu=True)


def clip_with_timm() -> nn.Module:
    model = clip(CustomTextCLIP)
    model.visual = timm_model(pool="map", proj="none", global_pool="map", class_token=False)
    return model


def encode_image(model: nn.Module, x: Tensor) -> Tensor:
    return model.encode_image(x)


SIGLIP = {"pool": "map", "proj": "none", "global_pool": "map", "class_token": False}

CASES = [
    tower("class_token", layers=2),
    tower("average_pool", pool_type="avg", final_ln_after_pool=True),
    tower("layer_scale_no_pre_norm", ls_init_value=0.1, no_ln_pre=True),
    tower("attentional_pool", attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2),
    tower(
        "custom_blocks",
        block_type="custom",
        qk_norm=True,
        scale_heads=True,
        scale_attn_inner=True,
        scale_attn=True,
        scale_fc=True,
        ls_init_value=0.1,
    ),
    Case("clip", clip, call=encode_image),
    Case("custom_text_clip", lambda: clip(CustomTextCLIP), call=encode_image),
    Case("custom_text_clip_with_timm_tower", clip_with_timm, call=encode_image),
    Case(
        "timm_tower_linear",
        lambda: timm_model(pool="avg", proj="linear"),
        dropout=lambda: timm_model(pool="avg", proj="linear", drop=0.5, proj_drop_rate=0.5),
    ),
    Case("timm_tower_mlp", lambda: timm_model(pool="avg", proj="mlp")),
    Case("timm_tower_own_head", lambda: timm_model(pool="avg", proj="")),
]


MACHINERY = ("class_token", "clip")


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return with_machinery(request.param, MACHINERY)


class TestContract(Contract):
    pass


@pytest.mark.parametrize("cls", [CLIP, CustomTextCLIP])
def test_zero_shot_classification_of_a_clip(cls: type[CLIP]) -> None:
    model, video = clip(cls).eval(), torch.randn(2, FRAMES, 3, 16, 16)
    text = torch.randint(1, 50, (5, 8))
    with torch.no_grad():
        images = model.encode_image(video.flatten(0, 1)).unflatten(0, (2, FRAMES)).mean(1)
        expected = F.normalize(images, dim=-1) @ model.encode_text(text, normalize=True).T
        aim.wrap_image_model(model, FRAMES)
        ours = model.encode_image(video, normalize=True) @ model.encode_text(text, normalize=True).T
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
        image_features, text_features, scale = model(video, text)
        torch.testing.assert_close(image_features @ text_features.T, expected, rtol=1e-5, atol=1e-6)
        assert scale.ndim == 0


def test_text_tower_is_frozen_and_its_dropout_inactive() -> None:
    model = clip(CustomTextCLIP)
    model.text.dropout = nn.Dropout(0.5)
    aim.wrap_image_model(model, FRAMES)
    model.train()
    assert model.training
    assert model.visual.training
    assert model.visual.transformer.resblocks[0].training
    assert not model.text.dropout.training
    assert not model.visual.transformer.resblocks[0].attn.training
    assert not any(p.requires_grad for p in model.text.parameters())


@pytest.mark.parametrize("cls", [CLIP, CustomTextCLIP])
@pytest.mark.parametrize("part", ["", "visual"])  # what is wrapped
def test_locking_the_image_tower_is_refused(cls: type[CLIP], part: str) -> None:
    model = clip(cls)
    trains = len(aim.trainable_parameters(aim.wrap_image_model(model.get_submodule(part), FRAMES)))
    for groups in (0, 1):
        with pytest.raises(StateError, match=r"lock\w*\(\) would .* wrapping has frozen the image model"):
            model.lock_image_tower(unlocked_groups=groups)
    assert len(aim.trainable_parameters(model)) == trains
    model.set_grad_checkpointing()


@pytest.mark.parametrize("num_classes", [0, 7])
def test_whole_clip_keeps_its_image_features(num_classes: int) -> None:
    with pytest.raises(aim.AIMError, match=r"wrap model\.visual"):
        aim.wrap_image_model(clip(), FRAMES, num_classes=num_classes)


@pytest.mark.parametrize("case", [case for case in CASES if "clip" not in case.name], ids=lambda case: case.name)
def test_new_head_reads_the_pooled_features_before_the_projection(case: Case) -> None:
    model = case.model()
    width = 12 if case.name == "attentional_pool" else 32
    bypassed = aim.count_parameters(aim.wrap_image_model(model, FRAMES)).total
    aim.unwrap_image_model(model)
    aim.wrap_image_model(model, FRAMES, num_classes=7)
    assert model(case.video()).shape == (2, 7)
    assert model.get_submodule("aim.head").weight.shape == (7, width)
    loss(model(case.video())).backward()
    assert aim.count_parameters(model).total < bypassed + 7 * width + 7
    with aim.disable_adapters(model), torch.no_grad():
        assert model(case.video()).shape == (2, 12)


def test_tower_of_a_whole_model_is_unwrapped_with_it() -> None:
    model = aim.wrap_image_model(clip(), FRAMES)
    with pytest.raises(aim.AIMError, match="'visual' of a larger model"):
        aim.unwrap_image_model(model.visual)
    holder = nn.ModuleDict({"clip": model})
    aim.unwrap_image_model(holder)
    assert type(model) is CLIP
    assert not aim.is_wrapped(model)


def test_fused_attention_runs_in_training_and_in_evaluation() -> None:
    """The native fast path of nn.MultiheadAttention would make the kernel depend on the mode."""
    model = wake(aim.wrap_image_model(VisionTransformer(**SIZE), FRAMES, attention="sdpa"))
    aim.set_execution(model, fused=False)
    video = torch.randn(1, FRAMES, 3, 16, 16)
    for mode in (True, False):
        with (
            mock.patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as sdpa,
            torch.no_grad(),
        ):
            model.train(mode)(video)
        assert sdpa.call_count == 2 * SIZE["layers"]  # temporal and spatial in each block


def test_unusual_multi_head_attention_is_refused() -> None:
    model = VisionTransformer(**SIZE)
    model.transformer.resblocks[1].attn.batch_first = False
    with pytest.raises(aim.UnsupportedModelError, match=r"resblocks\.1\.attn uses batch_first=False"):
        aim.wrap_image_model(model, FRAMES)
    model.transformer.resblocks[1].attn = nn.MultiheadAttention(32, 2, batch_first=True, add_bias_kv=True)
    with pytest.raises(aim.UnsupportedModelError, match="bias_k/bias_v"):
        aim.wrap_image_model(model, FRAMES)


def test_scaled_cosine_attention_is_refused() -> None:
    with pytest.raises(aim.UnsupportedModelError, match="scaled cosine"):
        aim.wrap_image_model(VisionTransformer(**SIZE, scaled_cosine_attn=True), FRAMES)


def own_attention_in_plain_blocks() -> nn.Module:
    """Build blocks as later versions of open_clip do: the plain block around the package's own attention."""
    model = VisionTransformer(**SIZE)
    for block in model.transformer.resblocks:
        block.attn = Attention(SIZE["width"], SIZE["heads"])
        block.attention = lambda q_x, k_x=None, v_x=None, attn_mask=None, attn=block.attn: attn(q_x, attn_mask)
    return model


def test_own_attention_is_found_by_what_it_is() -> None:
    model, video = own_attention_in_plain_blocks().eval(), torch.randn(2, FRAMES, 3, 16, 16)
    with torch.no_grad():
        expected = model(video.flatten(0, 1)).unflatten(0, (2, FRAMES)).mean(1)
        aim.wrap_image_model(model, FRAMES)
        torch.testing.assert_close(model(video), expected, rtol=1e-5, atol=1e-6)


def test_masked_block_is_refused() -> None:
    model = aim.wrap_image_model(VisionTransformer(**SIZE), FRAMES)
    with pytest.raises(aim.UnsupportedModelError, match="attention mask"):
        model.transformer.resblocks[0](torch.randn(FRAMES, 5, 32), attn_mask=torch.zeros(5, 5))


def test_convolutional_tower_is_refused() -> None:
    model = CLIP(12, CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, image_size=32), CLIPTextCfg(**TEXT))
    with pytest.raises(aim.UnsupportedModelError, match="ModifiedResNet, not a vision transformer"):
        aim.wrap_image_model(model, FRAMES)
