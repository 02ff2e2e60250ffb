"""`ClipSampler`: every clip once over all processes, from any position on, with a seed that depends on nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_adapters.errors import ConfigError
from aim_adapters.video import ClipSampler, clip_seed


def merged(parts: list[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    """Return what processes draw, in the order of their steps."""
    steps = max(map(len, parts), default=0)
    return [part[step] for step in range(steps) for part in parts if step < len(part)]


@given(
    length=st.integers(0, 40),
    world=st.integers(1, 5),
    other=st.integers(1, 5),
    share=st.floats(0, 1),
    shuffle=st.booleans(),
    epoch=st.integers(0, 2**31 - 1),
)
def test_processes_share_an_epoch_and_resume_in_any_number(
    length: int, world: int, other: int, share: float, shuffle: bool, epoch: int
) -> None:
    def drawn(world: int, start: int = 0) -> list[tuple[int, int]]:
        samplers = [
            ClipSampler(length, seed=3, epoch=epoch, shuffle=shuffle, rank=rank, world=world, start=start)
            for rank in range(world)
        ]
        parts = [list(sampler) for sampler in samplers]
        assert [len(sampler) for sampler in samplers] == list(map(len, parts))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        return merged(parts)

    whole, start = drawn(1), int(share * length)
    assert sorted(index for index, _ in whole) == list(range(length))
    assert drawn(world) == whole
    assert drawn(other, start) == whole[start:]
    assert all(seed == clip_seed(3, epoch, index) for index, seed in whole)


def test_epochs_and_runs_differ_in_order_and_seeds() -> None:
    sampler = ClipSampler(50, seed=1)
    first = list(sampler)
    assert first == list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    other = list(ClipSampler(50, seed=2))
    assert len({seed for key in (first, second, other) for _, seed in key}) == 150
    assert len({tuple(index for index, _ in key) for key in (first, second, other)}) == 3
    assert [index for index, _ in ClipSampler(5, shuffle=False, epoch=3)] == list(range(5))


def test_clip_seed_stays_what_it_is() -> None:
    # A run that is resumed by a later version draws the same clips.
    assert [clip_seed(0, 0, 0), clip_seed(1, 2, 3)] == [4808561972376111626, 1138364116778193076]


@pytest.mark.parametrize("wrong", [{"rank": 2, "world": 2}, {"start": 11}, {"epoch": -1}, {"world": 0}, {"shuffle": 1}])
def test_wrong_arguments_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ClipSampler(10, **wrong)  # type: ignore[arg-type]
