from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import aim_adapters as aim
from aim_adapters.video import dense_indices, uniform_indices

totals, lengths, strides, counts = st.integers(1, 400), st.integers(1, 40), st.integers(1, 20), st.integers(1, 5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=200, deadline=None)
@given(total=totals, frames=lengths, stride=strides, clips=counts, train=st.booleans())
def test_every_clip_is_inside_the_video_and_in_order(
    total: int, frames: int, stride: int, clips: int, train: bool
) -> None:
    for draw in (
        lambda g: uniform_indices(total, frames, clips=clips, generator=g),
        lambda g: dense_indices(total, frames, stride, clips=clips, generator=g),
    ):
        indices = draw(generator() if train else None)
        assert indices.dtype == torch.int64 and indices.shape == (clips, frames)
        assert 0 <= indices.min() and indices.max() < total
        assert (indices.diff(dim=1) >= (1 if total >= frames else 0)).all()  # no frame twice if there are enough
        assert torch.equal(indices, draw(generator() if train else None))


@settings(max_examples=200, deadline=None)
@given(total=totals, frames=lengths, stride=strides, clips=counts, train=st.booleans())
def test_views_of_a_video_differ_wherever_it_is_long_enough(
    total: int, frames: int, stride: int, clips: int, train: bool
) -> None:
    drawn = generator() if train else None
    if total >= clips * frames:
        assert len(uniform_indices(total, frames, clips=clips, generator=drawn).unique(dim=0)) == clips
    if total >= frames + clips - 1:
        dense = dense_indices(total, frames, stride, clips=clips, generator=drawn)
        assert len(dense.unique(dim=0)) == clips
        assert (dense.diff(dim=1) == dense[0].diff()[:1]).all()  # one distance, in all of them
    elif total > frames:  # too few starts for views that are dense
        assert len(dense_indices(total, frames, stride, clips=clips).unique(dim=0)) > 1 or clips == 1


def test_uniform_takes_the_middle_of_each_segment_in_testing_and_any_of_it_in_training() -> None:
    assert uniform_indices(24, 8).tolist() == [[1, 4, 7, 10, 13, 16, 19, 22]]
    assert uniform_indices(24, 4, clips=3).tolist() == [[1, 7, 13, 19], [3, 9, 15, 21], [5, 11, 17, 23]]
    drawn = torch.cat([uniform_indices(24, 8, generator=generator(seed)) for seed in range(60)])
    for segment in range(8):
        assert set(drawn[:, segment].tolist()) == set(range(3 * segment, 3 * segment + 3))
    for total in (48, 64, 96, 100):  # with more clips than a segment has frames
        assert len(uniform_indices(total, 32, clips=6).unique(dim=0)) == 6
    assert uniform_indices(3, 8).tolist() == [[0, 0, 0, 1, 1, 2, 2, 2]]


def test_dense_spreads_starts_in_testing_and_draws_them_in_training() -> None:
    assert dense_indices(100, 4, 8).tolist() == [[38, 46, 54, 62]]
    assert dense_indices(100, 4, 8, clips=3)[:, 0].tolist() == [12, 38, 63]
    starts = {dense_indices(30, 4, 8, generator=generator(seed))[0, 0].item() for seed in range(80)}
    assert starts == set(range(6))
    assert dense_indices(10, 4, 8).tolist() == [[0, 3, 6, 9]]  # as far apart as the video allows


@pytest.mark.parametrize(
    "wrong", [{"total": 0}, {"frames": 0}, {"frames": 2.5}, {"clips": 0}, {"generator": 3}, {"total": "x"}]
)
def test_wrong_numbers_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(aim.ConfigError, match=next(iter(wrong))):
        uniform_indices(**({"total": 10, "frames": 2} | wrong))
    with pytest.raises(aim.ConfigError, match="stride"):
        dense_indices(10, 2, 0)
