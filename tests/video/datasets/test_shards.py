"""Videos in tar files and in LitData's chunks: every one once over processes and workers, broken ones counted."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from litdata.streaming import Cache
from torch.utils.data import DataLoader

from aim_adapters.errors import ConfigError, VideoError
from aim_adapters.video import (
    ClipReader,
    LitDataVideos,
    SkippedVideo,
    VideoFolder,
    VideoShards,
    VideoStream,
    collate_clips,
    write_shards,
)
from tests.video.datasets.cases import fake, videos
from tests.video.gray import brightness

NAMES = tuple(f"{'in' if index % 2 else 'out'}/{index}.mp4" for index in range(5))
LABELS = ("in", "out")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos of brightness 20, 60, …, and one that cannot be read."""
    root = videos(tmp_path_factory.mktemp("videos"), names=NAMES)
    (root / "in/broken.mp4").write_bytes(b"no video")
    return root


@pytest.fixture(scope="module")
def shards(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_shards(VideoFolder(root, 4), tmp_path_factory.mktemp("shards"), max_videos=1)


def levels(stream: VideoStream, **settings: Any) -> tuple[list[int], list[SkippedVideo]]:
    """Return the brightness of every clip that a loader yields, and what was left out."""
    found, skipped = [], []
    for batch in DataLoader(stream.tracked(), batch_size=2, collate_fn=collate_clips, **settings):
        for clip, label in zip(batch["video"], batch["label"].tolist(), strict=True):
            level = round((brightness(clip) - 23.5) / 40)
            assert LABELS[label] == NAMES[level].partition("/")[0]
            found.append(level)
        skipped += batch["skipped"]
    return found, skipped


def test_every_video_once_over_processes_and_workers(shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(shards) == 6
    found, skipped = [], []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        part = levels(VideoShards(shards, 4, labels=LABELS), num_workers=2)
        assert part[0]
        found += part[0]
        skipped += part[1]
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert [record.name for record in skipped] == ["in/broken.mp4"]
    monkeypatch.setenv("WORLD_SIZE", "7")
    with pytest.raises(ConfigError, match="6 shards for 7 processes"):
        next(iter(VideoShards(shards, 4, labels=LABELS)))


def test_broken_members_are_listed(shards: list[str]) -> None:
    stream = VideoShards(str(Path(shards[0]).parent), 4, labels=LABELS, length=6)
    with pytest.warns(UserWarning, match=r"^in/broken\.mp4: ") as caught:
        assert len(list(stream)) == 5 == len(list(stream))
    assert len(caught) == 1 and len(stream.skipped) == 1 and len(stream) == 6
    with pytest.raises(VideoError, match="1 of 6 videos"):
        stream.note_skipped([], max_skipped=0.1)
    views = stream.with_reader(ClipReader(2, clips=3))
    assert next(iter(views))[0].shape == (3, 2, 3, 24, 32)


def test_epochs_of_training_differ_and_can_be_repeated(shards: list[str]) -> None:
    pattern = str(Path(shards[0]).parent / "videos-{000000..000005}.tar")
    stream = VideoShards(pattern, 2, labels=LABELS, stride=1, train=True, seed=3)
    loader = DataLoader(stream.tracked(), batch_size=6, collate_fn=collate_clips)

    def drawn(epoch: int) -> torch.Tensor:
        stream.set_epoch(epoch)
        return next(iter(loader))["video"]

    first, second = drawn(0), drawn(1)
    assert torch.equal(first, drawn(0)) and first.shape == second.shape and not torch.equal(first, second)
    unseeded = VideoShards(pattern, 2, labels=LABELS, stride=1, train=True)
    assert len({tuple(levels(unseeded)[0]) for _ in range(5)}) > 1


def member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def test_shards_of_others(root: Path, tmp_path: Path) -> None:
    data = (root / NAMES[1]).read_bytes()
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member(archive, "x.MP4", data)
        member(archive, "x.cls", b"0\n")
        member(archive, "y.txt", b"no video")
        member(archive, "z.mp4", data)
        member(archive, "z.cls", b"in")
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: len(data) // 2])
    found, skipped = levels(
        VideoShards([*map(str, sorted(tmp_path.iterdir())), str(tmp_path / "c.tar")], 4, labels=LABELS)
    )
    assert found == [1, 1]
    reasons = {Path(record.name).name: record.reason for record in skipped}
    assert reasons["y"] == "no video among its members txt" and set(reasons) == {"y", "b.tar", "c.tar"}
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member(archive, "x.mp4", data)
        member(archive, "x.cls", b"up")
    with pytest.raises(ConfigError, match=r"a\.tar/x\.mp4: label 'up' is not among the 2 labels"):
        levels(VideoShards([str(tmp_path / "a.tar")], 4, labels=LABELS))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member(archive, "x.mp4", data)
    with pytest.raises(ConfigError, match=r"a\.tar/x\.mp4: no label"):
        levels(VideoShards([str(tmp_path / "a.tar")], 4, labels=LABELS))


def test_wrong_arguments_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there are no shards"):
        VideoShards(tmp_path, 4, labels=LABELS)
    with pytest.raises(ConfigError, match="labels"):
        VideoShards("a.tar", 4, labels="in")
    with pytest.raises(TypeError, match="pass length="):
        len(VideoShards("a.tar", 4, labels=LABELS))
    with pytest.raises(ConfigError, match="is not empty"):
        write_shards(VideoFolder(root, 4), root)
    with pytest.raises(TypeError, match="dataset must be a VideoDataset"):
        write_shards(root, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="in/clip: cannot be put into a shard"):
        write_shards(VideoFolder(fake(tmp_path / "frames", "in/clip/1.jpg"), 4), tmp_path / "new")


def test_litdata(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(str(tmp_path), chunk_size=1)
    for index, name in enumerate((*NAMES, "in/broken.mp4")):
        cache[index] = {"video": (root / name).read_bytes(), "label": name.partition("/")[0], "name": name}
    cache.done()
    cache.merge()
    found, skipped = levels(LitDataVideos(tmp_path, 4, labels=LABELS), num_workers=2)
    assert sorted(found) == [0, 1, 2, 3, 4] and [record.name for record in skipped] == ["in/broken.mp4"]
    with pytest.raises(ConfigError, match=r"source must be a path or a litdata\.StreamingDataset"):
        LitDataVideos(3, 4, labels=LABELS)
