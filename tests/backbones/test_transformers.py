"""The vision models of transformers keep every promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.errors import ConfigError, InputError
from tests.backbones.cases import FRAMES, Case, process_group, scramble, wake, with_machinery
from tests.backbones.contract import Contract

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
    plain, name = kwargs.pop("plain_attention", None), kwargs.pop("name", cls.__name__)
    dropout = kwargs.pop("dropout", None)

    def build(**more: Any) -> Callable[[], nn.Module]:
        return lambda: cls(config(**{**SIZE, **kwargs, **more}))

    return Case(
        name, build(), call=call, output=OUTPUTS[call], plain_attention=plain,
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
    member(hf.ViTForImageClassification, hf.ViTConfig, logits, dropout=VIT_DROPOUT, num_hidden_layers=2),
    member(hf.DeiTModel, hf.DeiTConfig, pooled),
    member(hf.DeiTForImageClassification, hf.DeiTConfig, logits, dropout=VIT_DROPOUT),
    member(hf.DeiTForImageClassificationWithTeacher, hf.DeiTConfig, logits),
    member(hf.CLIPVisionModel, hf.CLIPVisionConfig, pooled, dropout={"attention_dropout": 0.5}),
    member(hf.CLIPVisionModelWithProjection, hf.CLIPVisionConfig, image_embeds),
    member(hf.SiglipVisionModel, hf.SiglipVisionConfig, pooled),
    member(hf.Dinov2Model, hf.Dinov2Config, pooled, layerscale_value=0.1, num_hidden_layers=2),
    member(
        hf.Dinov2ForImageClassification, hf.Dinov2Config, logits, layerscale_value=0.1,
        dropout={**VIT_DROPOUT, "drop_path_rate": 0.5},
    ),
    member(hf.Dinov2WithRegistersForImageClassification, hf.Dinov2WithRegistersConfig, logits, layerscale_value=0.1),
    member(hf.DINOv3ViTModel, hf.DINOv3ViTConfig, pooled, plain_attention=plain_attention_v3, num_register_tokens=2),
    member(
        hf.DINOv3ViTModel, hf.DINOv3ViTConfig, pooled, plain_attention=plain_attention_v3, use_gated_mlp=True,
        hidden_act="silu", num_hidden_layers=2, name="DINOv3ViTModel_gated",
    ),
    whole(hf.CLIPModel, hf.CLIPConfig, image_features),
    whole(hf.SiglipModel, hf.SiglipConfig, image_features),
    Case(
        "CLIPForImageClassification", lambda: hf.CLIPForImageClassification(hf.CLIPConfig(**WHOLE, num_labels=5)),
        call=logits, output=OUTPUTS[logits],
    ),
]  # fmt: skip


MACHINERY = ("ViTForImageClassification", "Dinov2Model", "SiglipModel")


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return with_machinery(request.param, MACHINERY)


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
    with pytest.raises(aim.UnsupportedModelError, match=r"modeling_swin\.SwinLayer.*nearest is timm_swin"):
        aim.wrap_image_model(model, FRAMES)


def test_classification_head_of_another_width_updates_the_loss() -> None:
    model = aim.wrap_image_model(CASES[1].model(), FRAMES, num_classes=9)
    assert model.config.num_labels == 9
    assert model(CASES[1].video(), labels=torch.tensor([8, 3])).loss.isfinite()
    aim.unwrap_image_model(model)
    assert model.config.num_labels == 5


NAFLEX = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def naflex_inputs(clips: int = 2) -> dict[str, Tensor]:
    """Return frames of 2 x 3 patches, padded to 8, for every clip."""
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(clips, FRAMES, 8, 3 * 4 * 4, generator=generator),
        "pixel_attention_mask": (torch.arange(8) < 6).long().expand(clips, FRAMES, 8),
        "spatial_shapes": torch.tensor([2, 3]).expand(clips, FRAMES, 2),
    }


@pytest.mark.parametrize("cls", [hf.Siglip2VisionModel, hf.Siglip2ForImageClassification, hf.Siglip2Model])
def test_naflex_siglip_takes_patches_of_frames(cls: type[nn.Module]) -> None:
    vision = {**NAFLEX, "num_patches": 16, "patch_size": 4}
    whole_config = hf.Siglip2Config(vision_config=vision, text_config=TEXT, num_labels=5)
    torch.manual_seed(0)
    model = cls(hf.Siglip2VisionConfig(**vision) if cls is hf.Siglip2VisionModel else whole_config)
    scramble(model).eval()

    def call(inputs: dict[str, Tensor]) -> Tensor:
        if cls is hf.Siglip2Model:
            return model.get_image_features(**inputs).pooler_output
        out = model(**inputs)
        return out.logits if cls is hf.Siglip2ForImageClassification else out.pooler_output

    clips = naflex_inputs()
    flat = {name: tensor.flatten(0, 1) for name, tensor in clips.items()}
    with torch.no_grad():
        expected = call(flat).unflatten(0, (2, FRAMES)).mean(1)
        wake_later = aim.wrap_image_model(model, FRAMES)
        torch.testing.assert_close(call(clips), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(call(flat), expected, rtol=1e-5, atol=1e-6)
        wake(wake_later)
        adapted = call(clips)
        assert not torch.allclose(adapted, expected)
        clips["pixel_values"][:, :, 6:] = 100.0  # what lies under the mask is never seen
        torch.testing.assert_close(call(clips), adapted, rtol=1e-5, atol=1e-6)
        with aim.disable_adapters(model):
            torch.testing.assert_close(call(naflex_inputs()), expected, rtol=1e-5, atol=1e-6)
        with pytest.raises(InputError, match=rf"{FRAMES} frames, got \[2, {FRAMES - 1}, 8, 48\]"):
            call({name: tensor[:, 1:] for name, tensor in clips.items()})


def test_naflex_siglip_takes_tubelets_and_refuses_frames_of_several_shapes() -> None:
    torch.manual_seed(0)
    model = scramble(hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**NAFLEX, num_patches=16, patch_size=4))).eval()
    clips = naflex_inputs()
    halves = {name: tensor[:, ::2] for name, tensor in clips.items()}
    halves["pixel_values"] = clips["pixel_values"].unflatten(1, (-1, 2)).mean(2)
    with torch.no_grad():
        torch.manual_seed(1)
        expected = wake(aim.wrap_image_model(model, FRAMES // 2))(**halves).pooler_output
        aim.unwrap_image_model(model)
        torch.manual_seed(1)
        found = wake(aim.wrap_image_model(model, FRAMES, tubelet_size=2))(**clips).pooler_output
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        clips["spatial_shapes"] = clips["spatial_shapes"].clone()
        clips["spatial_shapes"][1, 2] = torch.tensor([3, 2])
        for inputs in (clips, {name: tensor.flatten(0, 1) for name, tensor in clips.items()}):
            with pytest.raises(InputError, match=r"^spatial_shapes differs between the frames of clip 1"):
                model(**inputs)


def test_naflex_siglip_trains_what_is_declared() -> None:
    model = aim.wrap_image_model(hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**NAFLEX, patch_size=4)), FRAMES)
    wake(model)
    model.train()(**naflex_inputs()).pooler_output.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in aim.trainable_parameters(model))


def test_sub_classes_keep_working() -> None:
    class Mine(hf.ViTForImageClassification):
        pass

    model = Mine(hf.ViTConfig(**SIZE))
    aim.wrap_image_model(model, FRAMES)
    assert isinstance(model, Mine)
    assert model(torch.randn(2, FRAMES, 3, 16, 16)).logits.shape == (2, 5)


def test_masks_are_refused_by_position_too() -> None:
    model = aim.wrap_image_model(CASES[0].model(), FRAMES)
    with pytest.raises(aim.UnsupportedModelError, match="bool_masked_pos"):
        model(CASES[0].video(), torch.zeros(2 * FRAMES, 4, dtype=torch.bool))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_save_pretrained_writes_the_image_model_and_what_is_ours_beside_it(case: Case, tmp_path: Path) -> None:
    model = case.model()
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    num_classes = 3 if hasattr(model, "classifier") else None  # None: no labels change
    wake(aim.wrap_image_model(model, FRAMES, num_classes=num_classes))
    labels, whole = dict(getattr(model.config, "id2label", {})), dict(model.state_dict())
    model.save_pretrained(tmp_path)
    assert dict(getattr(model.config, "id2label", {})) == labels
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == whole.keys()
    assert all(torch.equal(tensor, written[name]) for name, tensor in whole.items())
    read, report = type(model).aim_base.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert read.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read.state_dict().items())


def test_save_pretrained_writes_the_names_of_the_original_files_when_asked(tmp_path: Path) -> None:
    model = aim.wrap_image_model(CASES[1].model(), FRAMES)
    model.save_pretrained(tmp_path, save_original_format=True)
    assert "vit.encoder.layer.0.aim.joint.up_proj.bias" in load_file(tmp_path / "model.safetensors")
    with pytest.raises(aim.CheckpointError, match="transformers"):
        model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
