"""Batches that cannot be right are told from those that can."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aim_adapters.layers.pixels import suspicions

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALVES: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
UNKNOWN: dict[str, Any] = {"mean": None, "std": None}
NEITHER: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
TINY: dict[str, Any] = {"mean": (0.5,) * 3, "std": (1 / 255,) * 3}


def images(count: int = 8, seed: int = 0) -> Tensor:
    """Return pixels in [0, 1], ``[count, 3, 48, 48]``."""
    return torch.rand(count, 3, 48, 48, generator=torch.Generator().manual_seed(seed))


def normalized(pixels: Tensor, facts: dict[str, Any]) -> Tensor:
    mean, std = (torch.tensor(facts[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (pixels - mean) / std


def found(frames: Tensor, facts: dict[str, Any], **arguments: Any) -> list[str]:
    return suspicions(frames, **{"num_frames": 4, "reorder": None, **facts, **arguments})


@pytest.mark.parametrize("facts", [IMAGENET, HALVES, TINY], ids=["imagenet", "halves", "tiny"])
def test_normalized_pixels_are_not_suspected(facts: dict[str, Any]) -> None:
    assert found(normalized(images(), facts), facts) == []
    assert found(normalized(images() * 0.2 + 0.4, facts), facts) == []


@pytest.mark.parametrize("facts", [IMAGENET, HALVES, UNKNOWN, NEITHER])
@pytest.mark.parametrize("wrong", ["bytes", "bytes minus mean"])
def test_pixels_up_to_255_are_suspected_whatever_is_known(facts: dict[str, Any], wrong: str) -> None:
    frames = images() * 255
    (message,) = found(frames if wrong == "bytes" else normalized(frames, IMAGENET), facts)
    assert "far outside of what normalized pixels can be; pass (video / 255 - mean) / std" in message
    if facts is IMAGENET:
        assert "this model's mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225)" in message


@pytest.mark.parametrize("facts", [IMAGENET, HALVES, UNKNOWN])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_pixels_of_which_none_is_negative_are_suspected(facts: dict[str, Any], scale: float) -> None:
    (message,) = found(images() * scale, facts)
    assert "none is negative, as if they were not normalized; pass (video - mean) / std" in message


def test_pixels_of_which_none_is_negative_may_be_right_for_the_model() -> None:
    assert found(images(), NEITHER) == []


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, float("nan")])
def test_constant_frames_and_noise_are_not_suspected(value: float) -> None:
    assert found(torch.full((8, 3, 4, 4), value), IMAGENET, reorder="…") == []
    noise = torch.randn(8, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    assert found(noise, IMAGENET, reorder="…") == []
    assert found(noise[:0], IMAGENET, reorder="…") == []


def moving(clips: int, frames: int) -> Tensor:
    """Return clips whose frames are alike, ``[B, T, 3, 24, 24]``, negative and positive."""
    generator = torch.Generator().manual_seed(clips * 100 + frames)
    scenes = torch.randn(clips, 1, 3, 24, 24, generator=generator)
    return scenes + 0.2 * torch.randn(clips, frames, 3, 24, 24, generator=generator)


@given(clips=st.integers(2, 9), frames=st.integers(2, 9))
@settings(deadline=None, max_examples=30)
def test_frames_in_the_order_of_time_first_are_suspected(clips: int, frames: int) -> None:
    video = moving(clips, frames)
    assert found(video.flatten(0, 1), UNKNOWN, num_frames=frames, reorder="…") == []
    turned = video.transpose(0, 1).flatten(0, 1)
    (message,) = found(turned, UNKNOWN, num_frames=frames, reorder="video.fixed()")
    assert message.endswith(f"frames {clips} apart are alike, those next to one another are not; pass video.fixed()")
    assert found(turned, UNKNOWN, num_frames=frames) == []


@pytest.mark.parametrize("clips", [2, 4, 8])
def test_one_clip_many_times_is_not_suspected(clips: int) -> None:
    clip = torch.randn(1, 4, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    assert found(clip.expand(clips, -1, -1, -1, -1).flatten(0, 1), UNKNOWN, reorder="…") == []
