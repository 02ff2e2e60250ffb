"""`check_videos`: what is broken, and what is slow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aim_adapters.errors import ConfigError
from aim_adapters.video import CheckReport, SkippedVideo, VideoCheck, VideoList, check_videos
from tests.video.gray import write_video
from tests.video.videos import write_audio


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "in/good.mp4", frames=80, options={"g": "100", "sc_threshold": "0"})
    write_video(root / "in/deep/large.webm", frames=2, size=(482, 482))
    (root / "out").mkdir()
    (root / "out/empty.mp4").touch()
    (root / "out/notes.txt").touch()
    write_audio(root / "out/sound.mp4")
    # Its beginning is fine, and its index says that there is more.
    whole = write_video(root / "whole.mkv", frames=120, size=(64, 64)).read_bytes()
    (root / "out/torn.mkv").write_bytes(whole[: len(whole) // 2])
    return root


def test_every_video_of_a_folder_is_opened(root: Path) -> None:
    steps: list[tuple[int, int]] = []
    report = check_videos(root, workers=2, progress=lambda *step: steps.append(step))
    found = {video.name: video for video in report.videos}
    assert not report.ok and {video.name for video in report.broken} >= {"out/empty.mp4", "out/sound.mp4"}
    assert not any((video.reason or "").startswith(str(root)) for video in report.broken)
    good = found["in/good.mp4"]
    assert (good.ok, good.frames, good.fps, good.size, good.codec) == (True, 80, 25.0, (24, 32), "h264")
    assert good.duration == 3.2 and good.key_frame_distance == 80
    assert "key frames are over 60 frames apart" in good.advice[0] and len(good.advice) == 1
    assert "short side is over 480" in found["in/deep/large.webm"].advice[0]
    assert report.ignored == ("out/notes.txt",) and steps == [(done, 6) for done in range(1, 7)]
    text = str(report)
    assert "6 videos" in text and "broken: out/sound.mp4: " in text and "32×24 (1)" in text and "notes.txt" in text
    assert json.loads(json.dumps(report.to_dict()))["videos"][0]["name"] == report.videos[0].name


def test_every_frame_on_request(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import aim_adapters.video.checking as module

    opened, read = module.open_video, []

    def spied(*arguments: Any, **settings: Any) -> Any:
        video = opened(*arguments, **settings)
        inner = video.get_frames
        video.get_frames = lambda indices: (read.extend(indices), inner(indices))[1]
        return video

    monkeypatch.setattr(module, "open_video", spied)
    assert check_videos(root / "in/good.mp4", workers=0).ok and read == [0, 40, 79]
    read.clear()
    assert check_videos(root / "in/good.mp4", workers=0, full=True).ok and read == list(range(80))


def test_datasets_are_checked_with_what_they_lack(root: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("in/good.mp4,in\nin/gone.mp4,in\n")
    with pytest.warns(UserWarning, match="missing"):
        dataset = VideoList(tmp_path / "list.csv", 8, root=root)
    dataset.skipped.append(SkippedVideo("in/good.mp4", "met before"))
    report = check_videos(dataset, workers=0)
    assert [(video.name, video.ok, video.reason) for video in report.videos] == [
        ("in/good.mp4", True, None),
        ("in/gone.mp4", False, "no such file"),
    ]


def test_reports_print(root: Path) -> None:
    assert str(CheckReport((VideoCheck("a.mp4", False, "broken"),))) == "1 videos, 0 can be read\nbroken: a.mp4: broken"


def test_wrong_arguments_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no video in"):
        check_videos(tmp_path)
    with pytest.raises(ConfigError, match="absent' cannot be read"):
        check_videos(tmp_path / "absent")
    with pytest.raises(TypeError, match="videos must be a folder"):
        check_videos(3)  # type: ignore[arg-type]
    for wrong in ({"workers": -1}, {"full": 1}, {"backend": 3}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            check_videos(root, **wrong)  # type: ignore[arg-type]
