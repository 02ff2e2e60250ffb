"""`Samples`: what it holds, and in how few objects."""

from __future__ import annotations

import gc
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aim_adapters.video.datasets import Samples

# What a file system of Linux may hold, also names that are no UTF-8.
NAMES = st.binary(min_size=1).filter(lambda name: b"\0" not in name and b"/" not in name).map(os.fsdecode)


@given(st.lists(st.tuples(NAMES, st.integers(0, 10**6))))
def test_every_video_comes_out_as_it_went_in(videos: list[tuple[str, int]]) -> None:
    samples = Samples("root", [name for name, _ in videos], [label for _, label in videos])
    assert [(sample.name, sample.label) for sample in samples] == videos
    assert samples[1:] == [samples[index] for index in range(len(samples))][1:]
    assert all(Path(sample.source) == Path("root") / sample.name for sample in samples)
    assert list(pickle.loads(pickle.dumps(samples))) == list(samples)
    with pytest.raises(IndexError):
        samples[len(samples)]


def test_worker_processes_share_its_memory() -> None:
    # Each object that is looked at is a page that is copied into a worker.
    samples = Samples("", [f"{index}.mp4" for index in range(5000)], range(5000))
    assert len(gc.get_referents(*samples.__dict__.values())) < 10
    assert len(pickle.dumps(samples)) < 5000 * 30
