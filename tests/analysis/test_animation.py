"""Files that play: read again, they hold the frames; what fails leaves no file behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from aim_adapters.analysis import save_gif, save_video
from aim_adapters.errors import ConfigError, InputError, VideoError
from aim_adapters.video import open_video


def frames(count: int = 5, height: int = 48, width: int = 64) -> Tensor:
    """Return frames of one color each, which differ."""
    colors = torch.linspace(20, 230, 3 * count).view(count, 3, 1, 1)
    return colors.byte().expand(count, 3, height, width)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.GIF"])
def test_an_animation_holds_its_frames_and_their_rate(tmp_path: Path, name: str) -> None:
    save_gif(frames(), tmp_path / name, fps=10)
    with Image.open(tmp_path / name) as picture:
        assert (picture.n_frames, picture.size, picture.info["loop"]) == (5, (64, 48), 0)
        for index, frame in enumerate(frames()):
            picture.seek(index)
            picture.load()
            assert picture.info["duration"] == 100
            color = torch.tensor(picture.convert("RGB").getpixel((10, 10)))
            assert (color - frame[:, 0, 0]).abs().max() < 8
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_video_of_odd_size_is_padded_and_its_index_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    save_video(frames(height=33, width=47), str(path), fps=12.5)
    with open_video(path) as video:
        assert (len(video), video.fps, video.frame_size) == (5, 12.5, (34, 48))
        found = video.get_frames(range(5))
    assert (found.float() - frames(height=34, width=48)).abs().max() < 12
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize(
    ("save", "change", "error", "message"),
    [
        (save_gif, {"path": "{}/a.png"}, ConfigError, r"\.gif or \.webp"),
        (save_video, {"path": "{}/a.avi"}, ConfigError, r"\.mp4"),
        (save_video, {"path": "{}/none/a.mp4"}, ConfigError, "folder that exists"),
        (save_gif, {"path": "{}/a\0.gif"}, VideoError, "as it was"),
        (save_gif, {"path": 3}, TypeError, "a path"),
        (save_gif, {"fps": 0}, ConfigError, "fps"),
        (save_gif, {"fps": 60}, ConfigError, "50"),
        (save_video, {"fps": float("nan")}, ConfigError, "fps"),
        (save_video, {"frames": frames().float()}, InputError, "uint8"),
        (save_gif, {"frames": frames()[0]}, InputError, r"frame\[None\]"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, save: Callable[..., None], change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"frames": frames(), "path": "{}/a.gif" if save is save_gif else "{}/a.mp4", **change}
    if isinstance(arguments["path"], str):
        arguments["path"] = arguments["path"].format(tmp_path)
    with pytest.raises(error, match=message):
        save(**arguments)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_replaced_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(b"before")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(VideoError, match=r"a\.gif: cannot be written, and is as it was: .*No space left"):
        save_gif(frames(), path)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"aim-adapters\[video\]"):
        save_video(frames(), tmp_path / "a.mp4")
