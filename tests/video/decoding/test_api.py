from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import aim_adapters as aim
from aim_adapters.video import VideoError, open_video
from aim_adapters.video.decoding import reader
from tests.video.videos import pictures, write, write_audio


def test_a_folder_of_pictures_is_a_video_in_the_natural_order_of_names(tmp_path: Path) -> None:
    for index, picture in enumerate(pictures(12)):
        picture.save(tmp_path / f"frame{index}.png")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("x")
    with open_video(tmp_path) as video:
        assert len(video) == 12 and video.frame_size == (48, 64)
        frame = torch.frombuffer(bytearray(pictures(12)[10].tobytes()), dtype=torch.uint8).view(48, 64, 3)
        assert torch.equal(video.get_frames([10])[0], frame.permute(2, 0, 1))
        assert video.get_frames([10], short_side=24).shape == (1, 3, 24, 32)
    pictures(1, height=20)[0].save(tmp_path / "frame7.png")
    with (
        open_video(tmp_path) as video,
        pytest.raises(VideoError, match=r"one size, got \(48, 64\) and, in frame7\.png"),
    ):
        video.get_frames([7])


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_animated_pictures_are_videos(tmp_path: Path, name: str) -> None:
    first, *rest = [Image.new("RGB", (40, 20), (30 * index, 0, 0)) for index in range(6)]
    first.save(tmp_path / name, save_all=True, append_images=rest, duration=100, lossless=True)
    with open_video((tmp_path / name).read_bytes()) as video:
        assert len(video) == 6 and video.frame_size == (20, 40)
        assert video.get_frames([5, 0, 3])[:, 0, 0, 0].tolist() == [150, 0, 90]


def playlist(folder: Path) -> Path:
    path = folder / "list.m3u8"
    target = write(folder / "target.mp4", count=2)
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n")
    return path


def concat(folder: Path) -> Path:
    path = folder / "list.txt"
    path.write_text(f"ffconcat version 1.0\nfile {write(folder / 'target.mp4', count=2)}\n")
    return path


def named(name: str, content: bytes) -> Any:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


class Unreadable(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        raise OSError("the disk is gone")


def folder_of_nothing(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing.mp4", r"missing\.mp4: there is no such file"),
        (named("zero.mp4", b""), r"zero\.mp4: is empty"),
        (named("text.mp4", b"hello " * 99), r"text\.mp4: cannot be read as a video"),
        (named("half.gif", b"GIF89a\0\0"), r"half\.gif: cannot be read as a picture"),
        (lambda folder: write_audio(folder / "sound.mp4"), r"sound\.mp4: has no video stream; it holds audio"),
        (folder_of_nothing, r"empty: is a folder without pictures"),
        (playlist, r"list\.m3u8: cannot be read"),
        (concat, r"list\.txt: cannot be read"),
        (lambda folder: "http://localhost/a.mp4", r"^http://localhost/a\.mp4: there is no such file, and addresses"),
        (lambda folder: "concat:a.mp4|b.mp4", r"^concat:a\.mp4\|b\.mp4: there is no such file, and addresses"),
        (lambda folder: "", "^'': is an empty name"),
        (lambda folder: folder / ("a" * 5000), r"…: cannot be read: a name of \d+ characters"),
        (lambda folder: "/dev/null", "^/dev/null: is neither a file nor a folder"),
        (lambda folder: b"", "^<0 bytes>: is empty"),
        (lambda folder: Unreadable(), "^<Unreadable>: cannot be read: the disk is gone"),
        (lambda folder: "a\0b", "cannot be read"),
    ],
)
def test_what_is_no_video_is_named_with_the_reason(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        open_video(make(tmp_path), backend="pyav")


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    for source in (None, 3, ["a.mp4"]):
        with pytest.raises(TypeError, match="source must be a path"):
            open_video(source)  # type: ignore[arg-type]
    with pytest.raises(aim.ConfigError, match="threads must be an integer >= 0"):
        open_video(tmp_path, threads=-1)
    with pytest.raises(aim.ConfigError, match="backend must be one of"):
        open_video(tmp_path, backend="decord")  # type: ignore[arg-type]
    with (tmp_path / "t").open("w+") as text, pytest.raises(TypeError, match="open for reading bytes"):
        open_video(text)  # type: ignore[arg-type]
    with open_video(write(tmp_path / "a.mp4", count=3)) as video:
        for indices in ([], [3], [-1], [0.5], "01", None):
            with pytest.raises(aim.ConfigError, match="indices"):
                video.get_frames(indices)  # type: ignore[arg-type]
        with pytest.raises(aim.ConfigError, match="short_side"):
            video.get_frames([0], short_side=0)


def test_gray_of_16_bits_is_not_cut_off(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(tmp_path / "deep.png")
    assert open_video(tmp_path).get_frames([0]).unique().tolist() == [40_000 // 256]


def test_a_reader_is_of_the_process_that_opened_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_video(write(tmp_path / "a.mp4", count=3)) as video:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(aim.StateError, match=r"a\.mp4: was opened by another process"):
            video.get_frames([0])


def test_frames_that_are_far_too_large_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(1)[0].save(tmp_path / "a.png")
    monkeypatch.setattr(reader, "MOST_PIXELS", 1000)
    for source in (write(tmp_path / "a.mp4", count=2), tmp_path / "a.png", tmp_path):
        with pytest.raises(VideoError, match="has frames of 64 x 48 pixels; expected 1 to 1000"):
            open_video(source)


@pytest.mark.parametrize("name", ["é ü.mp4", "a%03d.mp4", "-i.mp4", "c:d.mp4", "http:.mp4"])
def test_any_name_of_a_file_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write(tmp_path / "plain.mp4", count=2).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with open_video(name) as video:
        assert len(video) == 2 and video.name == name
