"""The number of frames can change: temporal positions are interpolated, nothing else moves, and it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import aim_adapters as aim
from aim_adapters.errors import ConfigError, StateError
from aim_adapters.layers.temporal import relative_temporal_bias, resize_temporal_bias, resize_temporal_embedding
from tests.backbones.cases import scramble, wake

SIZE: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


def vit(frames: int, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return wake(aim.wrap_image_model(scramble(VisionTransformer(**SIZE)), frames, **kwargs)).eval()


def swin(frames: int) -> nn.Module:
    torch.manual_seed(0)
    model = SwinTransformer(
        img_size=16, patch_size=4, embed_dim=16, depths=(2,), num_heads=(2,), window_size=4, num_classes=5
    )
    return wake(aim.wrap_image_model(scramble(model), frames)).eval()


def test_embedding_is_interpolated_linearly() -> None:
    ramp = torch.arange(4.0).view(1, 4, 1).expand(1, 4, 3)
    doubled = resize_temporal_embedding(ramp, 8)
    # frame j of 8 lies at (j + 0.5) / 2 - 0.5 of the old clip, and not outside it
    expected = ((torch.arange(8.0) + 0.5) / 2 - 0.5).clamp(0, 3)
    torch.testing.assert_close(doubled, expected.view(1, 8, 1).expand(1, 8, 3))
    torch.testing.assert_close(resize_temporal_embedding(ramp, 4), ramp)
    assert torch.equal(resize_temporal_embedding(ramp[:, :1] + 2, 5), torch.full((1, 5, 3), 2.0))
    assert resize_temporal_embedding(ramp.bfloat16(), 8).dtype == torch.bfloat16


def test_bias_is_interpolated_and_keeps_its_center_and_ends() -> None:
    table = torch.randn(7, 2)  # T = 4
    for frames in (2, 3, 8):
        resized = resize_temporal_bias(table, frames)
        assert resized.shape == (2 * frames - 1, 2)
        for new, old in ((0, 0), (frames - 1, 3), (-1, -1)):
            torch.testing.assert_close(resized[new], table[old])
    torch.testing.assert_close(resize_temporal_bias(table, 1), table[3:4])
    torch.testing.assert_close(resize_temporal_bias(table, 4), table)


def test_relative_bias_reads_query_minus_key() -> None:
    table = torch.arange(5.0).view(5, 1)  # T = 3
    assert relative_temporal_bias(table)[0].tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]


@pytest.mark.parametrize("make", [vit, swin])
def test_set_num_frames_announces_and_resizes(make: Any) -> None:
    model = make(4)
    before = {key: tensor.clone() for key, tensor in aim.adapter_state_dict(model).items()}
    old = {id(p) for p in aim.trainable_parameters(model)}
    what = "temporal (embedding|bias) interpolated from 4 to 8 frames; an optimizer made before holds dead parameters"
    with pytest.warns(UserWarning, match=f"{what}: make it anew") as caught:
        aim.set_num_frames(model, 8)
    assert [warning.filename for warning in caught] == [__file__]
    after = aim.adapter_state_dict(model)
    changed = {key for key in before if before[key].shape != after[key].shape}
    assert changed == {key for key in before if "temporal_embedding" in key or "temporal_bias" in key}
    assert changed
    assert len(changed) == len({id(p) for p in aim.trainable_parameters(model)} - old)  # those an optimizer has not
    assert all(torch.equal(before[key], after[key]) for key in before if key not in changed)
    assert model(torch.randn(2, 8, 3, 16, 16)).shape == (2, 5)
    assert {id(p) for p in aim.trainable_parameters(model)} == {id(p) for p in model.parameters() if p.requires_grad}
    with pytest.raises(aim.AIMError, match="8 frames"):
        model(torch.randn(2, 4, 3, 16, 16))


def test_a_clip_slowed_down_keeps_its_answer() -> None:
    """With no embedding at work, every frame twice changes no softmax average."""
    model = vit(4)
    model.get_parameter("aim.temporal_embedding").data.zero_()
    video = torch.randn(2, 4, 3, 16, 16)
    with torch.no_grad(), pytest.warns(UserWarning, match="interpolated"):
        expected = model(video)
        aim.set_num_frames(model, 8)
        torch.testing.assert_close(model(video.repeat_interleave(2, 1)), expected, rtol=1e-4, atol=1e-5)


def test_one_frame_equals_an_image() -> None:
    torch.manual_seed(0)
    image_model = scramble(VisionTransformer(**SIZE)).eval()
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = image_model(images)
        aim.wrap_image_model(image_model, 4)
        with pytest.warns(UserWarning, match="interpolated from 4 to 1"):
            aim.set_num_frames(image_model, 1)
        torch.testing.assert_close(image_model(images), expected, rtol=1e-5, atol=1e-6)


def test_tubelets_count_as_input_frames() -> None:
    model = vit(8, tubelet_size=2)
    with pytest.raises(ConfigError, match="multiple of tubelet_size"):
        aim.set_num_frames(model, 5)
    with pytest.warns(UserWarning, match="from 4 to 8"):
        aim.set_num_frames(model, 16)
    assert model(torch.randn(1, 16, 3, 16, 16)).shape == (1, 5)


@pytest.mark.parametrize("frames", [0, 2.0, None])
def test_wrong_number_changes_nothing(frames: Any) -> None:
    model = vit(4)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match="num_frames"):
        aim.set_num_frames(model, frames)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert model(torch.randn(1, 4, 3, 16, 16)).shape == (1, 5)


def test_the_same_number_is_no_change() -> None:
    model = vit(4)
    embedding = model.get_parameter("aim.temporal_embedding")
    aim.set_num_frames(model, 4)
    assert model.get_parameter("aim.temporal_embedding") is embedding


def test_bare_models_only() -> None:
    with pytest.raises(StateError, match="not wrapped"):
        aim.set_num_frames(VisionTransformer(**SIZE), 4)
    with pytest.raises(StateError, match="OptimizedModule"):
        aim.set_num_frames(torch.compile(vit(4), backend="eager"), 8)


@pytest.mark.parametrize("make", [vit, swin])
def test_loading_with_another_number_of_frames_is_on_request(make: Any, tmp_path: Path) -> None:
    aim.save_adapters(make(4), tmp_path)
    model = make(8)
    with pytest.raises(aim.CheckpointError, match=r"num_frames=4 \(this model: 8\).*resize_frames=True"):
        aim.load_adapters(model, tmp_path)
    with pytest.warns(UserWarning, match="interpolated from 4 to 8 frames"):
        assert not any(aim.load_adapters(model, tmp_path, resize_frames=True))
    other = make(4)
    with pytest.warns(UserWarning, match="interpolated"):
        aim.set_num_frames(other, 8)
    video = torch.randn(1, 8, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(video), other(video))
