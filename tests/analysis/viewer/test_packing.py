from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import aim_adapters as aim
from aim_adapters.analysis.viewer import PackedMaps, fit_budget, pack_maps
from aim_adapters.analysis.viewer.packing import _pack
from tests.tiny import trained, video


def read(packed: PackedMaps, entry: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return the values as the page computes them."""
    shape = entry["shape"]
    content = zlib.decompress(packed.content)[entry["offset"] : entry["offset"] + int(np.prod(shape))]
    shares = (np.frombuffer(content, np.uint8).reshape(len(entry["scale"]), -1) / 255) ** 2
    values: np.ndarray[Any, Any] = (shares * np.array(entry["scale"])[:, None]).reshape(shape)
    return values


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), kind=st.sampled_from(["mean", "heads"]), power=st.integers(-6, 3))
def test_values_keep_their_size_within_a_step(seed: int, kind: str, power: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = [(block, torch.rand(2, 3, 4 + block, generator=generator) ** 4 * 10.0**power) for block in (0, 5)]
    packed = _pack(kind, maps)
    assert [entry["block"] for entry in packed.index] == [0, 5]
    for (_, values), entry in zip(maps, packed.index, strict=True):
        np.testing.assert_allclose(read(packed, entry), values, atol=1.1 * float(values.max()) / 255)


def test_all_maps_of_a_model_are_there() -> None:
    maps = aim.attention_maps(trained(), video(clips=1), target=0)
    packed = {each.kind: each for each in pack_maps(maps, relevance=True)}
    assert set(packed) == {"mean", "heads", "time", "time_heads", "grid", "rollout", "relevance"}
    entry = packed["grid"].index[1]
    np.testing.assert_allclose(read(packed["grid"], entry), maps.temporal_grid(1)[0], atol=0.01)
    entry = packed["heads"].index[2]
    np.testing.assert_allclose(read(packed["heads"], entry)[1], maps.spatial(2, head=1)[0], atol=0.01)


@pytest.mark.parametrize(
    ("budget", "left", "said"),
    [
        (100, [["mean", "heads", "grid"], ["mean", "heads", "grid"]], 0),
        (50, [["mean", "heads"], ["mean", "heads", "grid"]], 1),
        (41, [["mean"], ["mean", "heads", "grid"]], 2),
        (30, [["mean"], ["mean", "heads"]], 3),
        (0, [["mean"], ["mean"]], 4),
    ],
)
def test_what_does_not_fit_is_left_out_by_name(budget: int, left: list[list[str]], said: int) -> None:
    variant = [PackedMaps(kind, (), bytes(10)) for kind in ("mean", "heads", "grid")]
    kept, missing = fit_budget([variant, variant], budget)
    assert [[maps.kind for maps in packed] for packed in kept] == left
    assert len(missing) == said
    assert [maps.kind for maps in variant] == ["mean", "heads", "grid"]
