"""An adapter is built whole, where and as wide as the settings say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

import aim_adapters as aim
from tests.backbones.cases import assert_same, scramble, snapshot, wake
from tests.tiny import FRAMES as T
from tests.tiny import base, trained, video, wrapped


def swin() -> nn.Module:
    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depths": (2,), "num_heads": (2,), "window_size": 2}
    return scramble(SwinTransformer(**size, num_classes=5)).eval()


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
        assert [i for i, block in enumerate(model.blocks) if block.aim.joint is not None] == expected
        assert all(list(block.aim.parameters()) for i, block in enumerate(model.blocks) if i in expected)
        assert not any(list(block.aim.parameters()) for i, block in enumerate(model.blocks) if i not in expected)


def test_the_convolution_has_blocks_of_its_own() -> None:
    def parts(**settings: Any) -> tuple[list[str], bool]:
        keys = aim.adapter_state_dict(aim.wrap_image_model(base(depth=4), T, **settings))
        found = [key.split(".")[:3] for key in keys if key.endswith("up_proj.weight")]
        return sorted(f"{index} {name}" for _, index, name in found), "temporal_embedding" in keys

    assert parts(components=("temporal",), temporal="conv", conv_layers=[3, 1]) == (
        ["1 temporal_conv", "3 temporal_conv"],
        False,
    )
    both = {"components": ("temporal",), "temporal": "both", "layers": "top_half"}
    assert parts(**both, conv_layers=[0]) == (["0 temporal_conv", "2 temporal", "3 temporal"], True)
    assert parts(**both) == (["2 temporal", "2 temporal_conv", "3 temporal", "3 temporal_conv"], True)
    assert parts(layers=[1], temporal="conv") == (["1 joint", "1 spatial", "1 temporal_conv"], False)


@pytest.mark.parametrize("settings", [{"temporal": "conv"}, {"temporal": "both", "conv_layers": "all"}])
def test_swin_convolves_over_time_in_all_blocks(settings: dict[str, Any]) -> None:
    keys = set(aim.adapter_state_dict(aim.wrap_image_model(swin(), T, **settings)))
    assert {key.split(".")[1] for key in keys if ".temporal_conv." in key} == {"0", "1"}
    assert {key for key in keys if "temporal_bias" in key} == (
        {"blocks.0.temporal_bias"} if settings["temporal"] == "both" else set()
    )


def test_where_no_block_attends_over_time_the_convolution_sees_it() -> None:
    with pytest.raises(aim.ConfigError, match=r"none of the blocks \[1\] attends over time.*or pass temporal='conv'"):
        aim.wrap_image_model(swin(), T, layers=[1])
    model, clips = wake(aim.wrap_image_model(swin(), T, layers=[1], temporal="conv")).eval(), video()
    with torch.no_grad():
        assert not torch.allclose(model(clips), model(clips.flip(1)), rtol=1e-4)


def test_new_parts_follow_the_matrices_not_the_norms() -> None:
    model = base().to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()
    aim.wrap_image_model(model, T, num_classes=3)
    state = aim.adapter_state_dict(model)
    assert {t.dtype for key, t in state.items() if not key.startswith("norm")} == {torch.bfloat16}
    assert state["norm.weight"].dtype == torch.float32


class EightBit(Tensor):
    """A weight as quantizing tools make one: it says that it is of float32, and may require a gradient."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return nn.Parameter(self.detach().clone().as_subclass(EightBit), requires_grad=False)


class Packed(nn.Module):
    """A classification layer that keeps its weight in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(5, 32, dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.qweight.to(x.dtype).T


def quantized(part: str) -> Any:
    model = base()
    if part == "packed head":
        model.head = Packed()
    elif part == "integer head":
        model.head.weight = nn.Parameter(model.head.weight.detach().to(torch.int8), requires_grad=False)
    else:
        layer = model.get_submodule(part)
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(EightBit), requires_grad=False)
    return model


@pytest.mark.parametrize(
    ("part", "cure", "found"),
    [
        ("head", {"num_classes": 3}, r"its weight, a EightBit of torch\.float32.*pass num_classes=K"),
        ("packed head", {"num_classes": 0}, r"'head' is a Packed .*its qweight, no parameter.*pass num_classes=K"),
        ("integer head", {"num_classes": 3}, r"its weight, a Parameter of torch\.int8.*pass num_classes=K"),
        ("norm", {"train_norm": False}, r"'norm' is a LayerNorm .*pass train_norm=False$"),
    ],
)
def test_copies_that_cannot_train_are_refused(part: str, cure: dict[str, Any], found: str) -> None:
    model = quantized(part)
    before = snapshot(model)
    with pytest.raises(aim.UnsupportedModelError, match=found):
        aim.wrap_image_model(model, T)
    assert_same(before, snapshot(model))
    aim.wrap_image_model(model, T, **cure)(video()).sum().backward()
    with pytest.raises(aim.UnsupportedModelError, match=found):
        aim.add_adapter(model, "copies", aim.AIMConfig(num_frames=T))
    aim.add_adapter(model, "new", aim.AIMConfig(num_frames=T, **cure))


def test_a_classifier_quantized_by_torchao_is_refused() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = base(embed_dim=64)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    with pytest.raises(aim.UnsupportedModelError, match=r"'head' .*pass num_classes=K"):
        aim.wrap_image_model(model, T)
    aim.wrap_image_model(model, T, num_classes=3)


def test_adapters_load_beside_a_quantized_classifier(tmp_path: Any) -> None:
    aim.save_adapters(trained(), tmp_path)
    model = quantized("head")
    aim.load_adapters(model, tmp_path)
    assert type(model.get_parameter("aim.head.weight")) is nn.Parameter
    aim.adapter_param_groups(model.train(), 0.1)
