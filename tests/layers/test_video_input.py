"""Every accepted layout becomes the same flat frames; every other input is refused with its shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aim_adapters.errors import AIMError, InputError
from aim_adapters.layers.video_input import flatten_video

PROPERTY = settings(deadline=None, max_examples=60)
SIZES: dict[str, Any] = {"num_frames": 8, "channels": 3}


def lay_out(video: Tensor, layout: str) -> Tensor:
    """Return ``[B, T, C, H, W]`` in another layout, contiguous."""
    return {"BTCHW": video, "BCTHW": video.transpose(1, 2), "flat": video.flatten(0, 1)}[layout].contiguous()


@given(
    clips=st.integers(0, 3),
    frames=st.integers(1, 6),
    channels=st.integers(1, 6),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    layout=st.sampled_from(["BTCHW", "BCTHW", "flat"]),
    told=st.booleans(),
)
@PROPERTY
def test_every_layout_gives_the_same_frames(
    clips: int, frames: int, channels: int, size: tuple[int, int], layout: str, told: bool
) -> None:
    video = torch.randn(clips, frames, channels, *size)
    named = layout if told and layout != "flat" else "auto"
    given_video = lay_out(video, layout)
    if frames == channels and layout != "flat" and named == "auto":
        with pytest.raises(InputError, match="ambiguous"):
            flatten_video(given_video, num_frames=frames, channels=channels, layout=named)
        return
    flat = flatten_video(given_video, num_frames=frames, channels=channels, layout=named)
    assert flat.shape == (clips * frames, channels, *size)
    assert torch.equal(flat, video.flatten(0, 1))


@pytest.mark.parametrize("layout", ["BTCHW", "BCTHW"])
def test_named_layout_settles_an_ambiguous_shape(layout: str) -> None:
    video = torch.randn(2, 3, 3, 4, 5)
    flat = flatten_video(lay_out(video, layout), num_frames=3, channels=3, layout=layout)
    assert torch.equal(flat, video.flatten(0, 1))


def test_ambiguous_layout_says_how_to_settle_it() -> None:
    with pytest.raises(InputError, match=r"ambiguous: as many frames as channels \(3\).*'BTCHW' or 'BCTHW'.*flat"):
        flatten_video(torch.randn(2, 3, 3, 4, 4), num_frames=3, channels=3)


@pytest.mark.parametrize("layout", ["auto", "BTCHW", "BCTHW"])
def test_flat_frames_are_taken_whatever_the_layout(layout: str) -> None:
    video = torch.randn(16, 3, 4, 4)
    assert flatten_video(video, **SIZES, layout=layout) is video


@pytest.mark.parametrize(
    ("shape", "layout", "wanted"),
    [
        ((2, 7, 3, 4, 4), "auto", r"\[B, T, C, H, W\] or \[B, C, T, H, W\] with 8 frames and 3 channels"),
        ((2, 8, 4, 4, 4), "auto", "8 frames and 3 channels"),
        ((2, 3, 7, 4, 4), "auto", "8 frames and 3 channels"),
        ((2, 8, 4, 4, 3), "auto", "8 frames and 3 channels"),
        ((2, 3, 8, 4, 4), "BTCHW", r"must be \[B, T, C, H, W\] with 8 frames and 3 channels"),
        ((2, 8, 3, 4, 4), "BCTHW", r"must be \[B, C, T, H, W\] with 8 frames and 3 channels"),
        ((16, 1, 4, 4), "auto", r"\[B\*T, C, H, W\] with 8 frames and 3 channels"),
        ((15, 3, 4, 4), "auto", r"B\*T a multiple of 8"),
        ((3, 4, 4), "auto", r"\[B, T, C, H, W\], \[B, C, T, H, W\] or \[B\*T, C, H, W\]"),
        ((1, 2, 8, 3, 4, 4), "auto", "8 frames and 3 channels"),
        ((), "auto", "8 frames and 3 channels"),
    ],
)
def test_wrong_shape_names_what_was_got_and_wanted(shape: tuple[int, ...], layout: str, wanted: str) -> None:
    with pytest.raises(InputError, match=wanted) as caught:
        flatten_video(torch.zeros(shape), **SIZES, layout=layout)
    assert f"got {list(shape)}" in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, AIMError)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_wrong_dtype_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=rf"floating point and normalized, got {dtype}; convert"):
        flatten_video(torch.zeros(1, 8, 3, 4, 4, dtype=dtype), **SIZES)


@pytest.mark.parametrize("video", [np.zeros((1, 8, 3, 4, 4)), [torch.zeros(8, 3, 4, 4)], None])
def test_what_is_not_a_tensor_is_refused(video: Any) -> None:
    with pytest.raises(InputError, match=rf"must be a torch.Tensor, got {type(video).__name__}"):
        flatten_video(video, **SIZES)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    video = torch.randn(1, 8, 3, 2, 2).to(dtype)
    assert flatten_video(video, **SIZES, tubelet_size=2).dtype == dtype


@pytest.mark.parametrize("how", ["sliced", "expanded", "permuted", "channels_last_3d"])
def test_strides_do_not_matter(how: str) -> None:
    if how == "sliced":
        video = torch.randn(4, 16, 3, 8, 8)[::2, ::2, :, 1::2, ::2]
    elif how == "expanded":
        video = torch.randn(1, 1, 3, 4, 4).expand(2, 8, 3, 4, 4)
    elif how == "permuted":
        video = torch.randn(4, 4, 3, 8, 2).permute(4, 3, 2, 0, 1)
    else:
        video = torch.randn(2, 3, 8, 4, 4).contiguous(memory_format=torch.channels_last_3d).transpose(1, 2)
    assert not video.is_contiguous()
    for given_video in (video, video.transpose(1, 2)):
        assert torch.equal(flatten_video(given_video, **SIZES), video.contiguous().flatten(0, 1))


@given(
    clips=st.integers(1, 2),
    tubelet=st.integers(1, 4),
    count=st.integers(1, 3),
    channels=st.integers(1, 4),
    layout=st.sampled_from(["BTCHW", "BCTHW"]),
)
@PROPERTY
def test_tubelets_equal_an_inflated_patch_embedding(
    clips: int, tubelet: int, count: int, channels: int, layout: str
) -> None:
    video = torch.randn(clips, tubelet * count, channels, 4, 6, dtype=torch.float64)
    kernel, bias = torch.randn(5, channels, 2, 2, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    inflated = kernel[:, :, None].repeat(1, 1, tubelet, 1, 1) / tubelet
    expected = F.conv3d(video.transpose(1, 2), inflated, bias, stride=(tubelet, 2, 2))  # [B, D, T/t, H/2, W/2]
    images = flatten_video(
        lay_out(video, layout), num_frames=tubelet * count, channels=channels, layout=layout, tubelet_size=tubelet
    )
    out = F.conv2d(images, kernel, bias, stride=2).unflatten(0, (clips, count))  # [B, T/t, D, H/2, W/2]
    torch.testing.assert_close(out, expected.transpose(1, 2), rtol=1e-12, atol=1e-12)


def test_gradient_reaches_the_video() -> None:
    video = torch.randn(2, 3, 8, 4, 4, requires_grad=True)
    flatten_video(video, **SIZES, tubelet_size=2).sum().backward()
    assert video.grad is not None
    assert torch.equal(video.grad, torch.full_like(video, 0.5))
