"""`VideoFolder`: classes from sub-folders, and folders that are laid out in another way."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from aim_adapters.errors import ConfigError
from aim_adapters.video import VideoFolder
from tests.video.datasets.cases import fake


def names(dataset: VideoFolder) -> list[tuple[str, int]]:
    return [(sample.name, sample.label) for sample in dataset.samples]


def test_classes_are_sub_folders_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "zoom in/b.MP4", "zoom in/a c.webm", "Pan/x.avi", "Pan/.x.avi.mp4", ".cache/y.mp4", "Pan/.DS_Store")
    dataset = VideoFolder(tmp_path, num_frames=8)
    assert dataset.labels == ("Pan", "zoom in") and dataset.num_frames == 8 and len(dataset) == 3
    assert names(dataset) == [("Pan/x.avi", 0), ("zoom in/a c.webm", 1), ("zoom in/b.MP4", 1)]
    assert dataset.samples[-1].source == str(tmp_path / "zoom in" / "b.MP4")
    # Hidden files are listed, without a warning.
    assert {(record.name, record.counts) for record in dataset.skipped} == {
        ("Pan/.DS_Store", False), ("Pan/.x.avi.mp4", False),
    }  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert names(VideoFolder(f"~/{tmp_path.name}", 8)) == names(dataset)
    assert repr(dataset).endswith("3 videos of 2 classes, 2 skipped>")


def test_files_that_are_no_videos_are_listed(tmp_path: Path) -> None:
    fake(tmp_path, "in/a.mp4", "in/notes.txt", "stray.mp4")
    with pytest.warns(UserWarning, match=r"2 files are left out.*notes\.txt.*stray\.mp4") as caught:
        dataset = VideoFolder(tmp_path, 8)
    assert caught[0].filename == __file__
    assert [(record.name, record.counts) for record in dataset.skipped] == [
        ("in/notes.txt", False),
        ("stray.mp4", False),
    ]
    with pytest.raises(ConfigError, match=r"in.*holds no video, only files with \.mp4, \.txt"):
        VideoFolder(tmp_path, 8, extensions=[".AVI"])


def test_labels_fix_the_order_and_differences_are_named(tmp_path: Path) -> None:
    fake(tmp_path, "in/a.mp4", "out/b.mp4")
    assert names(VideoFolder(tmp_path, 8, labels=["out", "in"])) == [("in/a.mp4", 1), ("out/b.mp4", 0)]
    with pytest.raises(ConfigError, match=r"only in the folder: \['in'\]; only in labels: \['into'\]"):
        VideoFolder(tmp_path, 8, labels=["into", "out"])
    with pytest.raises(ConfigError, match=r"only in labels: \['up'\].*allow_empty"):
        VideoFolder(tmp_path, 8, labels=["in", "out", "up"])
    assert VideoFolder(tmp_path, 8, labels=["in", "out", "up"], allow_empty=True).labels == ("in", "out", "up")
    with pytest.raises(ConfigError, match="twice"):
        VideoFolder(tmp_path, 8, labels=["in", "in"])


def test_splits_one_level_too_high_are_refused(tmp_path: Path) -> None:
    fake(tmp_path, "train/in/a.mp4", "train/out/b.mp4", "test/in/c.mp4")
    with pytest.raises(ConfigError, match=r"2 of the 2 folders.*point one deeper: VideoFolder\(.*test.*nested=True"):
        VideoFolder(tmp_path, 8)
    nested = VideoFolder(tmp_path, 8, nested=True)
    assert names(nested) == [("test/in/c.mp4", 0), ("train/in/a.mp4", 1), ("train/out/b.mp4", 1)]
    # Among videos, too: they would be left out.
    fake(tmp_path / "train", "in/old/z.mp4")
    with pytest.raises(ConfigError, match=r"1 of the 2 folders.*in/old/z\.mp4"):
        VideoFolder(tmp_path / "train", 8)


def test_empty_classes_and_folders_are_refused(tmp_path: Path) -> None:
    fake(tmp_path, "in/a.mp4")
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=r"'.*out' holds no video; remove it, or pass allow_empty"):
        VideoFolder(tmp_path, 8)
    assert VideoFolder(tmp_path, 8, allow_empty=True).labels == ("in", "out")
    with pytest.raises(ConfigError, match="there is no video"):
        VideoFolder(fake(tmp_path / "none", "in/.keep"), 8, allow_empty=True)
    with pytest.raises(ConfigError, match=r"has videos directly in it \(1\)"):
        VideoFolder(tmp_path / "in", 8)
    with pytest.raises(ConfigError, match="has no sub-folders"):
        VideoFolder(tmp_path / "out", 8)
    for wrong in ("absent", "in/a.mp4"):
        with pytest.raises(ConfigError, match=f"{wrong}.*cannot be read as a folder"):
            VideoFolder(tmp_path / wrong, 8)


def test_frames_in_a_folder_are_a_video(tmp_path: Path) -> None:
    fake(tmp_path, "in/clip 1/0001.jpg", "in/clip 1/0002.jpg", "in/b.mp4", "out/a/1.png", "out/a/Thumbs.db")
    assert names(VideoFolder(tmp_path, 8)) == [("in/b.mp4", 0), ("in/clip 1", 0), ("out/a", 1)]
    fake(tmp_path, "up/0001.jpg")
    with pytest.raises(ConfigError, match=r"up' holds no video; put the images of each video's frames into a folder"):
        VideoFolder(tmp_path, 8)


@pytest.mark.parametrize("pair", [("zoom in", "Zoom In"), ("café", unicodedata.normalize("NFD", "café")), ("a", "a ")])
def test_two_classes_of_one_name_are_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    for name in pair:
        fake(tmp_path, f"{name}/a.mp4")
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("the file system sees one name")
    with pytest.raises(ConfigError, match="two classes with one name"):
        VideoFolder(tmp_path, 8)


def test_names_agree_whatever_the_normalization(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "café")
    fake(tmp_path, f"{decomposed}/a.mp4", "bar/b.mp4")
    dataset = VideoFolder(tmp_path, 8)
    assert dataset.labels == ("bar", "café") and Path(dataset.samples[1].source).exists()
    assert [label for _, label in names(VideoFolder(tmp_path, 8, labels=["café", "bar"]))] == [1, 0]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    fake(tmp_path / "store", "x/a.mp4", "b.mp4")
    root = fake(tmp_path / "root", "in/own.mp4")
    (root / "out").symlink_to(tmp_path / "store" / "x")
    (root / "in" / "linked.mp4").symlink_to(tmp_path / "store" / "b.mp4")
    (root / "in" / "up").symlink_to(root / "in")
    with pytest.warns(UserWarning, match="in/up"):
        dataset = VideoFolder(root, 8)
    assert [name for name, _ in names(dataset)] == ["in/linked.mp4", "in/own.mp4", "out/a.mp4"]


@pytest.mark.parametrize(
    "wrong", [{"num_frames": 0}, {"labels": "in"}, {"nested": 1}, {"extensions": ["mp4"]}, {"stride": -1}, {"train": 2}]
)
def test_wrong_settings_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        VideoFolder(fake(tmp_path, "in/a.mp4"), **{"num_frames": 8, **wrong})
