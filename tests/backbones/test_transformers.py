"""The vision models of transformers keep every promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.errors import ConfigError, InputError
from tests.backbones.contract import FRAMES, Case, Contract, process_group

__all__ = ["process_group"]

SIZE: dict[str, Any] = {
    "image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 64, "num_labels": 5,
}  # fmt: skip
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}


def pooled(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).pooler_output


def logits(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).logits


def image_embeds(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).image_embeds


def image_features(model: nn.Module, x: Tensor) -> Tensor:
    return model.get_image_features(pixel_values=x).pooler_output


OUTPUTS: dict[Any, Callable[[Any], Tensor]] = {
    pooled: lambda out: out.pooler_output,
    logits: lambda out: out.logits,
    image_embeds: lambda out: out.image_embeds,
    image_features: lambda out: out.pooler_output,
}


def plain_attention_v3(block: Any, h: Tensor) -> Tensor:
    n, d = h.shape[1], block.attention.head_dim
    return block.attention(h, position_embeddings=(torch.ones(n, d).to(h), torch.zeros(n, d).to(h)))[0]


def member(cls: type[nn.Module], config: type, call: Callable[[nn.Module, Tensor], Tensor], **kwargs: Any) -> Case:
    plain = kwargs.pop("plain_attention", None)
    dropout = kwargs.pop("dropout", None)

    def build(**more: Any) -> Callable[[], nn.Module]:
        return lambda: cls(config(**{**SIZE, **kwargs, **more}))

    return Case(
        cls.__name__, build(), call=call, output=OUTPUTS[call], plain_attention=plain,
        dropout=build(**dropout) if dropout else None, mask={"attention_mask": torch.ones(2 * FRAMES, 5)},
    )  # fmt: skip


VIT_DROPOUT = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
WHOLE = {
    "text_config": TEXT, "projection_dim": 12, "vision_config": {k: v for k, v in SIZE.items() if k != "num_labels"},
}  # fmt: skip


def whole(cls: type[nn.Module], config: type, call: Any) -> Case:
    return Case(cls.__name__, lambda: cls(config(**WHOLE)), call=call, output=OUTPUTS[call], exact=False)


CASES = [
    member(hf.ViTModel, hf.ViTConfig, pooled, dropout=VIT_DROPOUT),
    member(hf.ViTForImageClassification, hf.ViTConfig, logits, dropout=VIT_DROPOUT),
    member(hf.DeiTModel, hf.DeiTConfig, pooled),
    member(hf.DeiTForImageClassification, hf.DeiTConfig, logits, dropout=VIT_DROPOUT),
    member(hf.DeiTForImageClassificationWithTeacher, hf.DeiTConfig, logits),
    member(hf.CLIPVisionModel, hf.CLIPVisionConfig, pooled, dropout={"attention_dropout": 0.5}),
    member(hf.CLIPVisionModelWithProjection, hf.CLIPVisionConfig, image_embeds),
    member(hf.SiglipVisionModel, hf.SiglipVisionConfig, pooled),
    member(hf.Dinov2Model, hf.Dinov2Config, pooled, layerscale_value=0.1),
    member(
        hf.Dinov2ForImageClassification, hf.Dinov2Config, logits, layerscale_value=0.1,
        dropout={**VIT_DROPOUT, "drop_path_rate": 0.5},
    ),
    member(hf.Dinov2WithRegistersForImageClassification, hf.Dinov2WithRegistersConfig, logits, layerscale_value=0.1),
    member(hf.DINOv3ViTModel, hf.DINOv3ViTConfig, pooled, plain_attention=plain_attention_v3, num_register_tokens=2),
    whole(hf.CLIPModel, hf.CLIPConfig, image_features),
    whole(hf.SiglipModel, hf.SiglipConfig, image_features),
    Case(
        "CLIPForImageClassification", lambda: hf.CLIPForImageClassification(hf.CLIPConfig(**WHOLE, num_labels=5)),
        call=logits, output=OUTPUTS[logits],
    ),
]  # fmt: skip


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


class TestContract(Contract):
    pass


def test_a_headless_model_has_no_place_for_a_classifier() -> None:
    model = CASES[0].model()
    with pytest.raises(ConfigError, match="ForImageClassification"):
        aim.wrap_image_model(model, FRAMES, num_classes=7)
    aim.wrap_image_model(model, FRAMES, num_classes=0)
    out = model(pixel_values=CASES[0].video())
    assert out.pooler_output.shape == (2, 32)
    assert out.last_hidden_state.shape == (2 * FRAMES, 5, 32)


def test_a_classifier_takes_videos_and_labels_by_name() -> None:
    model = aim.wrap_image_model(CASES[1].model(), FRAMES)
    out = model(pixel_values=CASES[1].video(), labels=torch.tensor([0, 3]))
    assert out.logits.shape == (2, 5)
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(out.logits, torch.tensor([0, 3])))


def test_tuples_are_refused_where_names_are_needed() -> None:
    model = aim.wrap_image_model(CASES[0].model(), FRAMES)
    with pytest.raises(InputError, match="return_dict=False"):
        model(CASES[0].video(), return_dict=False)


def test_swin_of_transformers_is_refused_by_name() -> None:
    model = hf.SwinModel(hf.SwinConfig(image_size=16, patch_size=4, embed_dim=16, depths=[2], num_heads=[2]))
    with pytest.raises(aim.UnsupportedModelError, match=r"modeling_swin\.Swin"):
        aim.wrap_image_model(model, FRAMES)


def test_classification_head_of_another_width_updates_the_loss() -> None:
    model = aim.wrap_image_model(CASES[1].model(), FRAMES, num_classes=9)
    assert model.config.num_labels == 9
    assert model(CASES[1].video(), labels=torch.tensor([8, 3])).loss.isfinite()
    aim.unwrap_image_model(model)
    assert model.config.num_labels == 5


def test_naflex_siglip_is_refused_and_says_what_to_load() -> None:
    config = hf.Siglip2VisionConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    with pytest.raises(aim.UnsupportedModelError, match="SiglipModel"):
        aim.wrap_image_model(hf.Siglip2VisionModel(config), FRAMES)
