"""`VideoDataset`: items, seeds, and videos that cannot be read."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aim_adapters.clip_spec import ClipSpec
from aim_adapters.errors import ConfigError, VideoError
from aim_adapters.video import (
    ClipReader,
    SkippedVideo,
    VideoDataset,
    VideoFolder,
    require_same_labels,
    transform_for,
)
from tests.video.datasets.cases import fake, videos
from tests.video.gray import brightness
from tests.video.videos import write_audio


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos, three of which cannot be read: 1, 3 and 4."""
    root = videos(tmp_path_factory.mktemp("videos"), names=("in/0.mp4", "in/2.mp4", "out/5.mp4"))
    (root / "in/1.mp4").touch()
    write_audio(root / "out/3.mp4")
    (root / "out/4.mp4").write_bytes((root / "in/0.mp4").read_bytes()[:100])
    return root


BROKEN = ["in/1.mp4", "out/3.mp4", "out/4.mp4"]


def test_items_are_clips_and_labels(root: Path) -> None:
    dataset = VideoDataset([(root / "in/0.mp4", "in"), (str(root / "out/5.mp4"), "out")], 4)
    clip, label = dataset[1]
    assert clip.shape == (4, 3, 24, 32) and label == 1 and dataset.labels == ("in", "out")
    assert brightness(clip) == pytest.approx(103.5, abs=2) == brightness(dataset[-1][0])
    assert [label for _, label in dataset] == [0, 1]
    with pytest.raises(IndexError):
        dataset[2]
    with pytest.raises(TypeError):
        dataset["a"]  # type: ignore[index]


def test_transform_says_whether_to_sample_at_random(root: Path) -> None:
    spec = ClipSpec(4, None, (16, 16), (0.5,) * 3, (0.5,) * 3)
    for train in (True, False):
        dataset = VideoFolder(root, 4, transform=transform_for(spec, train=train))
        assert dataset.reader.train is train and dataset[0][0].shape == (4, 3, 16, 16)
    assert VideoFolder(root, 4, transform=transform_for(spec), train=True).reader.train
    assert not VideoFolder(root, 4, transform=torch.nn.Identity()).reader.train


def test_the_same_seed_draws_the_same_clip_also_from_a_copy(root: Path) -> None:
    def noise(clip: Tensor) -> Tensor:
        return clip + torch.rand(())

    dataset = VideoFolder(root, 4, stride=1, train=True, transform=noise)
    drawn = [dataset[0, seed][0] for seed in range(5)]
    assert all(torch.equal(clip, dataset[0, seed][0]) for seed, clip in enumerate(drawn))
    assert len({brightness(clip) for clip in drawn}) == 5
    plain = dataset.with_reader(ClipReader(3, stride=1, train=True))
    copied = pickle.loads(pickle.dumps(plain))
    assert torch.equal(copied[5, 7][0], plain[5, 7][0]) and len(plain[0][0]) == 3 and len(dataset[0][0]) == 4


def test_training_reads_the_next_video_instead(root: Path) -> None:
    dataset = VideoFolder(root, 4, train=True)
    with pytest.warns(UserWarning, match=r"^in/1\.mp4: .*left out") as caught:
        clip, label = dataset[1, 0]
    assert caught[0].filename == __file__
    assert (brightness(clip), label) == (pytest.approx(brightness(dataset[2, 0][0])), 0)
    with pytest.warns(UserWarning, match="left out") as caught:
        assert dataset[3, 0][1] == 1
    assert len(caught) == 2
    for key in range(6):  # each is warned about once
        dataset[key, 0]
    assert [record.name for record in dataset.skipped] == BROKEN
    # From the last on, the first stands in.
    last = dataset.with_reader(dataset.reader)
    last.samples = type(dataset.samples)(str(root), ["in/0.mp4", "in/1.mp4"], [0, 0])
    assert brightness(last[1, 0][0]) == pytest.approx(brightness(dataset[0, 0][0]), abs=8)


def test_testing_has_no_stand_in(root: Path) -> None:
    dataset = VideoFolder(root, 4)
    with (
        pytest.warns(UserWarning, match=r"out/3\.mp4"),
        pytest.raises(VideoError, match=r"^out/3\.mp4: .*TrackedClips"),
    ):
        dataset[3]
    loaded = dataset.load(4)
    assert loaded.clip is None and loaded.index == 4 and [record.name for record in loaded.skipped] == ["out/4.mp4"]


def test_only_errors_of_videos_are_skipped(root: Path) -> None:
    def bug(clip: Tensor) -> Tensor:
        raise RuntimeError("a bug of the transform")

    with pytest.raises(RuntimeError, match="a bug of the transform"):
        VideoFolder(root, 4, train=True, transform=bug)[0]


def test_training_ends_where_nothing_can_be_read(tmp_path: Path) -> None:
    dataset = VideoFolder(fake(tmp_path, *(f"in/{index}.mp4" for index in range(3))), 4, train=True)
    with pytest.raises(VideoError, match=r"^in/2\.mp4: .*none of the 3 videos from here on can be read"):
        dataset[2, 0]


def test_limit_counts_what_is_missing_or_broken(root: Path) -> None:
    def dataset() -> VideoDataset:
        with pytest.warns(UserWarning, match=r"1 of 4 videos are missing"):
            return VideoDataset([(f"in/{index}.mp4", "in") for index in (0, 1, 2, 9)], 4, root=root)

    broken = SkippedVideo("in/1.mp4", "broken")
    first = dataset()
    first.note_skipped([], max_skipped=0.25)
    with (
        pytest.warns(UserWarning, match="broken"),
        pytest.raises(
            VideoError, match=r"2 of 4 videos are missing or cannot be read.*max_skipped=0\.25.*in/9\.mp4: no such file"
        ),
    ):
        first.note_skipped([broken, broken], max_skipped=0.25)
    # A dataset and its copy with another reader list the same.
    second = dataset()
    with pytest.warns(UserWarning, match="broken"):
        second.with_reader(ClipReader(2)).note_skipped([broken], max_skipped=0.5)
    assert [record.name for record in second.skipped] == ["in/9.mp4", "in/1.mp4"]
    second.note_skipped([broken])
    second.note_skipped([SkippedVideo("in/notes.txt", "no video", counts=False)][:0], max_skipped=0.5)


def test_many_broken_videos_are_not_warned_about_one_by_one(root: Path) -> None:
    dataset = VideoFolder(root, 4)
    with pytest.warns(UserWarning, match="left out") as caught:
        dataset.note_skipped(SkippedVideo(str(index), "broken") for index in range(50))
    assert len(caught) == 10 and "no warning" in str(caught[-1].message) and len(dataset.skipped) == 50


def test_one_folder_is_split_class_by_class(tmp_path: Path) -> None:
    names = [f"{label}/{index}.mp4" for label, count in {"in": 10, "out": 3, "up": 1}.items() for index in range(count)]
    dataset = VideoFolder(fake(tmp_path, *names), 4, stride=2)
    train, test = dataset.split(0.2)
    parts = [{sample.name for sample in part.samples} for part in (train, test)]
    assert parts[0] | parts[1] == set(names) and not parts[0] & parts[1]
    assert [sum(sample.label == label for sample in test.samples) for label in range(3)] == [2, 1, 0]
    assert train.labels == test.labels == dataset.labels and test.reader == dataset.reader and len(dataset) == 14
    assert [sample.name for sample in dataset.split(0.2)[1].samples] == [sample.name for sample in test.samples]
    assert parts[1] != {sample.name for sample in dataset.split(0.2, seed=1)[1].samples}
    assert [sample.name for sample in dataset.subset([13, 0]).samples] == ["up/0.mp4", "in/0.mp4"]
    for wrong in (0, 1, "a"):
        with pytest.raises(ConfigError, match="share"):
            dataset.split(wrong)  # type: ignore[arg-type]
    for indices in ([14], [-1], [0.5], [], 3):
        with pytest.raises(ConfigError, match="indices"):
            dataset.subset(indices)  # type: ignore[arg-type]


def test_datasets_of_other_labels_are_refused(root: Path) -> None:
    def named(*labels: str) -> VideoDataset:
        return VideoDataset([("in/0.mp4", labels[0])], 4, root=root, labels=labels)

    require_same_labels(named("in", "out"), named("in", "out"))
    with pytest.raises(ConfigError, match=r"only in train: \['in'\], only in test: \['into'\].*labels=train\.labels"):
        require_same_labels(named("in", "out"), named("into", "out"))
    with pytest.raises(ConfigError, match="another order"):
        require_same_labels(named("in", "out"), named("out", "in"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "videos must be pairs.*got none"),
        ("folder", "for a folder use VideoFolder"),
        ([("a.mp4",)], "videos must be pairs"),
        ([("a.mp4", 1.5)], "videos must be pairs"),
        ([(3, "in")], "videos must be pairs"),
        ([("a.mp4", "in")], "none of its 1 videos exists"),
        ([("in/0.mp4", "up")], "'in/0.mp4': label 'up' is not among the 2 labels"),
        ([("in/0.mp4", 2)], "label 2, but the 2 classes are 0 to 1"),
    ],
)
def test_wrong_videos_are_refused(root: Path, wrong: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VideoDataset(wrong, 4, root=root, labels=None if "exists" in message else ["in", "out"])
    with pytest.raises(TypeError, match="root must be a path"):
        VideoDataset([("in/0.mp4", "in")], 4, root=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="reader must be a ClipReader"):
        VideoFolder(root, 4).with_reader(4)  # type: ignore[arg-type]
