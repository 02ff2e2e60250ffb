"""timm's VisionTransformer keeps every promise, and what cannot is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import open_clip
import pytest
import timm
import timm.optim
import torch
from timm.layers import RmsNorm, SwiGLU, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock, ResPostBlock, VisionTransformer
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import aim_adapters as aim
from aim_adapters.backbones import read_anatomy
from tests.backbones.cases import Case, process_group, scramble, wake, with_machinery
from tests.backbones.contract import Contract
from tests.tiny import FRAMES, base, video

__all__ = ["process_group"]

SIZE: dict[str, Any] = {
    "img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5,
}  # fmt: skip
TEXT = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 2, "layers": 1}
DROPOUT: dict[str, Any] = {
    "drop_rate": 0.5, "pos_drop_rate": 0.5, "patch_drop_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5,
    "drop_path_rate": 0.5,
}  # fmt: skip


def member(name: str, cls: type[VisionTransformer] = VisionTransformer, image_size: int = 16, **kwargs: Any) -> Case:
    def build(**more: Any) -> Callable[[], nn.Module]:
        return lambda: cls(**{**SIZE, **kwargs, **more})

    mask = {"attn_mask": torch.zeros(5, 5)}
    return Case(name, build(), image_size=image_size, dropout=build(**DROPOUT), mask=mask)


CASES = [
    member("class_token", depth=2),
    member("features", num_classes=0),
    member("average_pool", global_pool="avg", class_token=False, fc_norm=True),
    member("average_pool_norm_first", global_pool="avg", fc_norm=False),
    member("attention_pool_siglip", global_pool="map", class_token=False),
    member("unpooled", global_pool="", num_classes=0),
    member("distilled_deit", cls=VisionTransformerDistilled),
    member(
        "registers_layer_scale_dinov2",
        depth=2,
        reg_tokens=2,
        init_values=0.1,
        no_embed_class=True,
        mlp_layer=SwiGLUPacked,
    ),
    member(
        "aimv2", depth=2, global_pool="avg", class_token=False, fc_norm=False, qkv_bias=False, proj_bias=False,
        act_layer="silu", norm_layer=partial(RmsNorm, eps=1e-5), embed_norm_layer=partial(RmsNorm, eps=1e-5),
        mlp_layer=SwiGLU, mlp_ratio=2.72,
    ),
    member("pre_norm_quick_gelu_clip", pre_norm=True, act_layer="quick_gelu"),
    member("query_key_norm", qk_norm=True, scale_attn_norm=True),
    member("post_norm", block_fn=ResPostBlock),
    member("dynamic_image_size", image_size=24, dynamic_img_size=True),
]  # fmt: skip


MACHINERY = ("class_token", "registers_layer_scale_dinov2")


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return with_machinery(request.param, MACHINERY)


# PyTorch's, of the image model's own RMS norms in front of the blocks and behind them, under autocast.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
class TestContract(Contract):
    pass


@pytest.mark.parametrize("block", [ParallelScalingBlock, ParallelThingsBlock])
def test_other_blocks_are_refused_by_name(block: type[nn.Module]) -> None:
    model = VisionTransformer(**SIZE, block_fn=block)
    with pytest.raises(aim.UnsupportedModelError, match=rf"blocks\.0 is a .*{block.__name__}.*register_backbone"):
        aim.wrap_image_model(model, 8)


def test_differential_attention_is_refused_though_its_attributes_are_the_same() -> None:
    model = VisionTransformer(**SIZE, attn_layer="diff")
    with pytest.raises(aim.UnsupportedModelError, match=r"blocks\.0\.attn is a .*DiffAttention"):
        aim.wrap_image_model(model, 8)


def test_sub_class_of_a_block_is_refused() -> None:
    model = VisionTransformer(**SIZE)
    model.blocks[1].__class__ = type("Mine", (type(model.blocks[1]),), {})
    with pytest.raises(aim.UnsupportedModelError, match=r"blocks\.1"):
        aim.wrap_image_model(model, 8)


def test_reset_classifier_is_blocked_while_wrapped() -> None:
    model = aim.wrap_image_model(VisionTransformer(**SIZE), 4)
    with pytest.raises(aim.AIMError, match="unwrap_image_model"):
        model.reset_classifier(7)
    aim.unwrap_image_model(model).reset_classifier(7)
    assert model.head.out_features == 7


def test_distilled_heads_are_both_new() -> None:
    model = aim.wrap_image_model(VisionTransformerDistilled(**SIZE), 4, num_classes=7)
    assert model(torch.randn(2, 4, 3, 16, 16)).shape == (2, 7)
    assert {key for key in aim.adapter_state_dict(model) if key.startswith("head")} == {
        "head.weight", "head.bias", "head_dist.weight", "head_dist.bias",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_small_patch14_reg4_dinov2",
        "vit_base_patch16_clip_quickgelu_224.openai", "vit_base_patch16_siglip_224", "vit_base_patch16_gap_224",
    ],
)  # fmt: skip
def test_models_by_name_are_read(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    anatomy = read_anatomy(model)
    assert anatomy.library == "timm"
    assert anatomy.model_name is not None
    assert anatomy.model_name.startswith(name.partition(".")[0])
    assert anatomy.image_mean is not None
    aim.wrap_image_model(model, 8)
    assert {p.device.type for p in aim.trainable_parameters(model)} == {"meta"}


def test_a_layer_in_place_of_the_packed_projection_is_called() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = base()
    model.blocks[0].attn.qkv.__class__ = Doubled
    attention = model.blocks[0].attn
    h = torch.randn(2, 5, 32)
    q, k, v = read_anatomy(model).blocks[0][1].project_qkv(attention, h)
    assert torch.equal(torch.stack([q, k, v], 2).flatten(2), attention.qkv(h))


def test_compiles_once_with_every_size_symbolic() -> None:
    """The contract leaves the size of an image alone, whatever the family."""
    model = wake(aim.wrap_image_model(base(depth=2), FRAMES))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled, compiles = torch.compile(model, fullgraph=True, dynamic=True, backend=counter), []
    for clips in (6, 7):
        torch.testing.assert_close(compiled(video(clips)), model(video(clips)), rtol=1e-4, atol=1e-5)
        compiles.append(counter.frame_count)
    assert compiles[0] == compiles[1] > 0


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("vit_base_patch16_clip_224.openai", "vit_base_patch16_clip_quickgelu_224.openai"),
        ("vit_base_patch32_clip_224.metaclip_400m", "vit_base_patch32_clip_quickgelu_224.metaclip_400m"),
    ],
)
def test_weights_of_another_activation_are_warned_about(name: str, right: str) -> None:
    model = timm.create_model(name, **SIZE)
    with pytest.warns(UserWarning, match=f"trained with QuickGELU.*{right}"):
        aim.wrap_image_model(model, num_frames=2, num_classes=3)
    assert timm.models.is_model(right.partition(".")[0])


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_clip_quickgelu_224.openai", "vit_base_patch16_clip_224.openai_ft_in1k"]
)
def test_weights_of_the_right_activation_are_not(name: str) -> None:
    aim.wrap_image_model(timm.create_model(name, **SIZE), num_frames=2, num_classes=3)


# What timm's scripts ask a model


def classes(model: nn.Module) -> tuple[int, Any]:
    layer = model.get_classifier()
    return model.num_classes, getattr(layer, "out_features", layer)


def test_number_of_classes_and_classifier_are_those_of_the_adapter_that_runs() -> None:
    model = base()
    own = model.get_classifier()
    aim.wrap_image_model(model, FRAMES, num_classes=7)
    assert classes(model) == (7, 7)
    assert model.get_classifier() is model.aim.head
    with aim.disable_adapters(model):
        assert classes(model) == (5, 5)
    aim.add_adapter(model, "copy", aim.AIMConfig(FRAMES))
    aim.add_adapter(model, "features", aim.AIMConfig(FRAMES, num_classes=0))
    aim.set_adapter(model, "copy")
    assert classes(model) == (5, 5)
    assert model.get_classifier() is model.aim.head
    aim.set_adapter(model, "features")
    assert model.num_classes == 0
    assert isinstance(model.get_classifier(), nn.Identity)
    assert classes(copy.deepcopy(model))[0] == 0
    aim.unwrap_image_model(model)
    assert classes(model) == (5, 5)
    assert model.get_classifier() is own


def test_distilled_model_has_two_classifiers() -> None:
    model = aim.wrap_image_model(VisionTransformerDistilled(**SIZE), FRAMES, num_classes=7)
    assert [layer.out_features for layer in model.get_classifier()] == [7, 7]


@pytest.mark.parametrize("layers", ["all", [1], "top_half"])
def test_layer_decay_puts_what_is_ours_where_it_runs(layers: Any) -> None:
    model = aim.wrap_image_model(base(), FRAMES, num_classes=7, layers=layers)
    groups = timm.optim.param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.5)
    found = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == len(aim.trainable_parameters(model))
    scale = {name: found[id(p)][0] for name, p in model.named_parameters() if p.requires_grad}
    first = {"all": 0, "top_half": 2}.get(str(layers), 1)
    frozen = timm.optim.param_groups_layer_decay(base(), 0.05, layer_decay=0.5)
    assert max(scale.values()) == max(group["lr_scale"] for group in frozen) == scale["aim.head.weight"] == 1
    for index in {0: (0, 1, 2), 1: (1,), 2: (2,)}[first]:
        assert scale[f"blocks.{index}.aim.joint.up_proj.weight"] == 0.5 ** (3 - index)
    assert scale["norm.aim.norm.weight"] == 0.5
    assert scale["aim.temporal_embedding"] == (0.5**4 if first == 0 else 0.5 ** (3 - first))
    decayed = {name for name, p in model.named_parameters() if p.requires_grad and found[id(p)][1]}
    kept = {id(p) for p in aim.adapter_param_groups(model, 0.05)[0]["params"]}
    assert decayed == {name for name, p in model.named_parameters() if id(p) in kept}


def test_optimizers_of_timm_do_not_decay_temporal_positions() -> None:
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=16, depths=(2, 2))
    clip = open_clip.CLIP(8, {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16}, TEXT)
    for model in (base(), swin, clip):
        aim.wrap_image_model(scramble(model), FRAMES)
        temporal = [n for n, _ in model.named_parameters() if n.endswith(("temporal_embedding", "temporal_bias"))]
        assert temporal
        assert set(temporal) <= model.no_weight_decay()
