"""`TrackedClips` and `collate_clips`: batches from worker processes, with a record of what was left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from aim_adapters.errors import ConfigError
from aim_adapters.video import ClipBatch, ClipReader, ClipSampler, TrackedClips, VideoFolder, collate_clips
from tests.video.datasets.cases import videos
from tests.video.gray import write_video


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = videos(tmp_path_factory.mktemp("videos"), names=("in/0.mp4", "in/2.mp4", "out/3.mp4"))
    (root / "in/1.mp4").touch()
    return root


def batches(dataset: VideoFolder, *, workers: int = 0, context: str | None = None, epoch: int = 0) -> list[ClipBatch]:
    sampler = ClipSampler(len(dataset), seed=1, epoch=epoch, shuffle=dataset.reader.train)
    loader = DataLoader(
        TrackedClips(dataset),
        batch_size=2,
        sampler=sampler,
        num_workers=workers,
        multiprocessing_context=context,
        collate_fn=collate_clips,
    )
    return list(loader)


def test_testing_leaves_a_broken_video_out(root: Path) -> None:
    first, second = batches(VideoFolder(root, 4))
    assert first["video"].shape == (1, 4, 3, 24, 32) and second["video"].shape == (2, 4, 3, 24, 32)
    assert first["index"].tolist() + second["index"].tolist() == [0, 2, 3]
    assert first["label"].tolist() + second["label"].tolist() == [0, 0, 1]
    assert [record.name for record in first["skipped"]] == ["in/1.mp4"] and not second["skipped"]
    none = collate_clips([VideoFolder(root, 4).load(1)])
    assert none["video"].shape == (0,) and none["label"].shape == (0,) and len(none["skipped"]) == 1
    views = VideoFolder(root, 4).with_reader(ClipReader(2, clips=3))
    assert batches(views)[1]["video"].shape == (2, 3, 2, 3, 24, 32)


def test_a_run_is_the_same_for_any_workers_and_start_method(root: Path) -> None:
    dataset = VideoFolder(root, 2, stride=1, train=True)
    expected = batches(dataset)
    assert sum(map(len, (batch["label"] for batch in expected))) == 4
    for workers, context in ((2, "fork"), (1, "spawn")):
        for batch, other in zip(batches(dataset, workers=workers, context=context), expected, strict=True):
            assert torch.equal(batch["video"], other["video"]) and torch.equal(batch["index"], other["index"])
            assert batch["skipped"] == other["skipped"]
    other_epochs = [torch.cat([batch["video"] for batch in batches(dataset, epoch=epoch)]) for epoch in range(4)]
    assert len({tuple(clips.float().mean((1, 2, 3, 4)).sort().values.tolist()) for clips in other_epochs}) > 1


def test_clips_of_different_shapes_are_refused(root: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "in/a.mp4")
    write_video(tmp_path / "in/b.mp4", size=(32, 32))
    with pytest.raises(ConfigError, match=r"one shape, got .*24, 32.* and .*32, 32.*transform_for"):
        batches(VideoFolder(tmp_path, 4))
