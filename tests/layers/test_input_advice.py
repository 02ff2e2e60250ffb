"""Advice about a wrong input works: done as it says, the input is taken."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from aim_adapters.errors import InputError
from aim_adapters.layers.input_advice import advise_type
from aim_adapters.layers.video_input import flatten_video

SIZES: dict[str, Any] = {"num_frames": 8, "channels": 3}


@pytest.mark.parametrize(
    ("shape", "layout", "advice"),
    [
        ((2, 8, 4, 5, 3), "auto", "channels are last: pass video.permute(0, 1, 4, 2, 3)"),
        ((16, 4, 5, 3), "auto", "channels are last: pass video.permute(0, 3, 1, 2)"),
        ((8, 2, 3, 4, 5), "auto", "frames are first: pass video.transpose(0, 1)"),
        ((2, 3, 8, 4, 5), "BTCHW", "wrapped with input_layout='BTCHW': pass video.transpose(1, 2)"),
        ((2, 8, 3, 4, 5), "BCTHW", "wrapped with input_layout='BCTHW': pass video.transpose(1, 2)"),
        ((2, 2, 8, 3, 4, 5), "auto", "several views of a clip count as clips: video.flatten(0, 1)"),
        ((2, 8, 1, 4, 5), "auto", "gray frames, repeat the channel: video.expand(-1, -1, 3, -1, -1)"),
        ((2, 1, 8, 4, 5), "auto", "gray frames, repeat the channel: video.expand(-1, 3, -1, -1, -1)"),
        ((16, 1, 4, 5), "auto", "gray frames, repeat the channel: video.expand(-1, 3, -1, -1)"),
        ((2, 8, 4, 5), "auto", "gray clips [B, T, H, W], pass video[:, :, None].expand(-1, -1, 3, -1, -1)"),
        ((2, 8, 4, 5, 6), "auto", "leave out the alpha channel: video[:, :, :3]"),
        ((2, 4, 8, 5, 6), "auto", "leave out the alpha channel: video[:, :3]"),
        ((16, 4, 5, 6), "auto", "leave out the alpha channel: video[:, :3]"),
        ((3, 8, 4, 5), "auto", "of one clip [C, T, H, W], pass video[None]"),
    ],
)
def test_advice_on_a_shape_works(shape: tuple[int, ...], layout: str, advice: str) -> None:
    video = torch.randn(shape)
    with pytest.raises(InputError, match=re.escape(advice) + "$") as caught:
        flatten_video(video, **SIZES, layout=layout)
    code = re.search(r"video[.\[].*$", str(caught.value))
    assert code is not None
    assert flatten_video(eval(code[0], {"video": video}), **SIZES, layout=layout).shape[1] == 3


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((2, 16, 3, 4, 5), r"sample 8 of its 16 frames, or call aim.set_num_frames\(model, 16\)"),
        ((2, 3, 16, 4, 5), r"sample 8 of its 16 frames, or call aim.set_num_frames\(model, 16\)"),
        ((2, 4, 3, 4, 5), r"repeat some of its 4 frames, or call aim.set_num_frames\(model, 4\)"),
        ((2, 0, 3, 4, 5), "the clip has no frames"),
        ((15, 3, 4, 5), r"pass whole clips of 8 frames each, or call aim.set_num_frames\(model, N\)"),
        ((3, 4, 5), r"a single image is no clip: stack 8 frames to \[1, 8, 3, H, W\]"),
        ((2, 9, 9, 9, 9), r"bring it to \[B, 8, 3, H, W\]"),
        ((5,), r"bring it to \[B, 8, 3, H, W\]"),
    ],
)
def test_advice_where_the_caller_has_to_choose(shape: tuple[int, ...], advice: str) -> None:
    with pytest.raises(InputError, match=advice):
        flatten_video(torch.zeros(shape), **SIZES)


@pytest.mark.parametrize(
    "video",
    [
        np.zeros((1, 8, 3, 4, 5), np.float32),
        [np.zeros((8, 3, 4, 5), np.float32)],
        [torch.zeros(8, 3, 4, 5)],
        (torch.zeros(8, 3, 4, 5),),
    ],
    ids=["array", "arrays", "tensors", "tuple"],
)
def test_advice_on_what_is_no_tensor_works(video: Any) -> None:
    code = re.search(r": (torch\..*); then normalize", advise_type(video))
    assert code is not None
    assert flatten_video(eval(code[1], {"torch": torch, "numpy": np, "video": video}), **SIZES).shape == (8, 3, 4, 5)


@pytest.mark.parametrize(
    ("video", "advice"),
    [
        (PIL.Image.new("RGB", (2, 2)), "a single image is no clip: stack all frames, torch.stack"),
        ([PIL.Image.new("RGB", (2, 2))], r"pil_to_tensor\(frame\) for frame in video"),
        ("clip.mp4", "decode the file first"),
        (Path("clip.mp4"), "decode the file first"),
        ({"pixel_values": 1}, r"video\['pixel_values'\], out of pixel_values"),
        (None, r"by its name \(pixel_values=video\)"),
        ([], "make it one"),
        (7, "make it one"),
    ],
)
def test_advice_on_anything_else(video: Any, advice: str) -> None:
    with pytest.raises(InputError, match=advice):
        flatten_video(video, **SIZES)


def test_bytes_are_converted_with_the_models_own_mean_and_std() -> None:
    video = torch.zeros(1, 8, 3, 4, 4, dtype=torch.uint8)
    how = r"\(video / 255 - mean\) / std, with this model's mean \(0.5, 0.25, 0.125\) and std \(1, 0.5, 0.25\)"
    with pytest.raises(InputError, match=how):
        flatten_video(video, **SIZES, mean=(0.5, 0.25, 0.125), std=(1.0, 0.5, 0.25))
    with pytest.raises(InputError, match="with the mean and std of the images that the model was trained on"):
        flatten_video(video, **SIZES)
