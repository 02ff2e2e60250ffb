"""The vision models of transformers keep every promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

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
