"""Overlays keep frames and show maps; film strips are what they say they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aim_adapters.analysis import film_strip, overlay
from aim_adapters.analysis.colormaps import COLORMAPS, colors_of
from aim_adapters.errors import ConfigError, InputError


def frames(count: int = 4, height: int = 20, width: int = 30) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


@settings(deadline=None)
@given(
    maps=st.integers(1, 3),
    each=st.integers(1, 2),
    grid=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    colormap=st.sampled_from(COLORMAPS),
    scale=st.sampled_from(["clip", "frame"]),
    factor=st.sampled_from([0.0, 1e-38, 1e-3, 1.0, -1e30]),
    opacity=st.sampled_from([0, 0.3, 1]),
)
def test_an_overlay_is_frames_and_at_opacity_0_the_same(
    maps: int, each: int, grid: tuple[int, int], colormap: str, scale: str, factor: float, opacity: float
) -> None:
    clip = frames(maps * each)
    before = clip.clone()
    out = overlay(clip, factor * torch.rand(maps, *grid), opacity=opacity, colormap=colormap, scale=scale)
    assert (out.shape, out.dtype) == (clip.shape, torch.uint8)
    assert torch.equal(clip, before)
    if not opacity or not factor:  # and a map that is the same everywhere shows nothing
        assert torch.equal(out, clip)


def test_more_attention_is_more_color_and_the_least_shows_the_frame() -> None:
    clip = torch.full((2, 3, 40, 40), 100, dtype=torch.uint8)
    maps = torch.zeros(2, 4, 4)
    maps[0, 0, 0], maps[1, 3, 3] = 0.5, 1.0
    out = overlay(clip, maps, opacity=1)
    top = torch.tensor([252, 255, 164], dtype=torch.uint8)  # inferno's lightest
    assert torch.equal(out[1, :, -1, -1], top)
    assert torch.equal(out[:, :, 20, 20], clip[:, :, 20, 20])  # between, nothing
    assert (out[0, :, 0, 0].float() - 100).abs().sum() < (out[1, :, -1, -1].float() - 100).abs().sum()
    alone = overlay(clip, maps, opacity=1, scale="frame")
    assert torch.equal(alone[0, :, 0, 0], top)


def test_each_map_of_tubelets_stands_for_its_frames() -> None:
    clip = frames(1).repeat(4, 1, 1, 1)
    out = overlay(clip, torch.rand(2, 3, 3))
    assert torch.equal(out[0], out[1]) and torch.equal(out[2], out[3])
    assert not torch.equal(out[1], out[2])


def test_a_difference_is_blue_below_and_red_above_zero() -> None:
    clip = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    out = overlay(clip, torch.tensor([[[-1.0, 1.0]]]), colormap="difference", opacity=1)[0]
    assert out[:, 0, 0].argmax() == 2 and out[:, 0, -1].argmax() == 0
    assert torch.equal(overlay(clip, torch.zeros(1, 2, 2), colormap="difference"), clip)


def test_colors_grow_lighter() -> None:
    for name in ("inferno", "viridis"):
        light = colors_of(torch.linspace(0, 1, 256), name) @ torch.tensor([0.2126, 0.7152, 0.0722])
        assert light.diff().min() > 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"maps": torch.rand(1, 4, 3, 3)}, InputError, r"maps\[0\]"),
        ({"maps": torch.rand(3, 3, 3)}, InputError, "got 3 maps"),
        ({"maps": torch.ones(4, 3, 3, dtype=torch.int64)}, InputError, "int64"),
        ({"maps": [1.0]}, InputError, "floating-point tensor"),
        ({"maps": torch.full((4, 3, 3), torch.nan)}, InputError, "NaN"),
        ({"maps": torch.rand(4, 0, 3)}, InputError, "shape"),
        ({"frames": frames().float()}, InputError, "uint8"),
        ({"frames": frames().permute(0, 2, 3, 1)}, InputError, "channels are last"),
        ({"opacity": 1.5}, ConfigError, "from 0 to 1"),
        ({"opacity": "half"}, ConfigError, "opacity"),
        ({"colormap": "jet"}, ConfigError, "inferno"),
        ({"scale": "video"}, ConfigError, "frame"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        overlay(**{"frames": frames(), "maps": torch.rand(4, 3, 3), **change})


@pytest.mark.parametrize("dark", [False, True])
def test_a_film_strip_shows_every_clip_under_its_name(dark: bool) -> None:
    clip = torch.full((10, 3, 20, 40), 200, dtype=torch.uint8)
    rows = {"one": clip, "a name\nthat is much longer than the strip is wide " * 4: clip // 2}
    picture = film_strip(rows, columns=3, height=40, dark=dark)
    pixels = torch.from_numpy(np.array(picture)).int()  # [h, w, 3]
    for value in (200, 100):
        shown = (pixels == value).all(2)
        assert shown.any(0).sum() == 3 * 80 and shown.any(1).sum() == 40  # three frames of 80 x 40
    paper = pixels[0, 0]
    assert (paper.float().mean() > 128) != dark
    names = pixels[3:20, 2:-2]  # above the first strip
    assert ((names - paper).abs().sum(2) > 300).any()
    assert film_strip(rows, columns=3, height=40, numbers=False).height < picture.height
    assert film_strip({"one": clip}, columns=20).width > 10 * 320


def test_what_is_no_film_strip_is_refused() -> None:
    clip = frames()
    for rows, message in (
        ({}, "got none"),
        (clip, "Tensor"),
        ({"a": clip, "b": clip[:2]}, r"'b', \[2"),
        ({"a": clip.float()}, "uint8"),
    ):
        with pytest.raises(InputError, match=message):
            film_strip(rows)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="each name"):
        film_strip({1: clip})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="columns"):
        film_strip({"a": clip}, columns=0)
    with pytest.raises(ConfigError, match="pixels; pass fewer"):
        film_strip({"a": clip[:, :, :1].repeat(1, 1, 1, 40)}, height=4096)
