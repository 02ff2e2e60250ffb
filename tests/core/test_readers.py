"""What takes images beside ``forward`` reads the frames that ``forward`` reads, or refuses a video."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import transformers as hf

import aim_adapters as aim
from aim_adapters.core.readers import ImageReader, inner_readers
from aim_adapters.errors import InputError, StateError
from tests.tiny import FRAMES, base, trained, video, wrapped

HF: dict[str, Any] = {
    "image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64,
}  # fmt: skip


def test_modules_between_the_root_and_others_are_found_from_outside() -> None:
    paths = inner_readers(["vit.embeddings.patch.proj", None, "vit.layers.0", "vit.layers.1", "norm"])
    assert paths == ["vit", "vit.embeddings", "vit.layers", "vit.embeddings.patch"]
    assert inner_readers([None, "norm"]) == []


def test_methods_read_tubelets_as_forward_does() -> None:
    model, clips = trained(tubelet_size=2), video()
    pairs = clips.unflatten(1, (FRAMES // 2, 2)).mean(2).flatten(0, 1)
    torch.testing.assert_close(model.forward_features(clips), model.forward_features(pairs))
    with pytest.raises(InputError, match=f"{FRAMES} frames"):
        model.forward_features(video(frames=FRAMES + 2))


def test_methods_take_videos_while_adapters_are_disabled_and_not_after_unwrapping() -> None:
    model, clips = wrapped(), video()
    with aim.disable_adapters(model):
        expected = base().forward_features(clips.flatten(0, 1))
        torch.testing.assert_close(model.forward_features(clips), expected)
    aim.unwrap_image_model(model)
    with pytest.raises(ValueError, match="unpack"):
        model.forward_features(clips)


def test_a_model_cut_by_name_is_left_whole() -> None:
    model, clips = trained(), video()
    expected = model(clips)
    with pytest.raises(StateError, match=r"prune_intermediate_layers\(\) would replace, cut"):
        model.prune_intermediate_layers(1)
    assert len(model.blocks) == 3
    assert torch.equal(model(clips), expected)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_the_model_inside_another_says_to_call_that(how: str) -> None:
    model = aim.wrap_image_model(hf.ViTForImageClassification(hf.ViTConfig(**HF)), FRAMES).eval()
    model = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    clips = video()
    for given in ({"pixel_values": clips}, {"pixel_values": clips.transpose(1, 2)}):
        with pytest.raises(InputError, match=r"this ViTModel is a part .*; call the wrapped model itself, or pass"):
            model.vit(**given)
    assert model.vit(clips.flatten(0, 1)).last_hidden_state.shape == (2 * FRAMES, 5, 32)
    assert isinstance(model.vit, ImageReader)
    aim.unwrap_image_model(model)
    assert type(model.vit) is hf.ViTModel
