from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aim_adapters.video import VideoError, open_video
from aim_adapters.video.decoding import api
from aim_adapters.video.decoding.api import torchcodec_loads
from tests.video.videos import write


def test_without_torchcodec_its_name_says_what_to_install(tmp_path: Path) -> None:
    if torchcodec_loads():
        pytest.skip("torchcodec is here")
    with pytest.raises(ImportError, match="needs torchcodec"):
        open_video(write(tmp_path / "a.mp4", count=2), backend="torchcodec")


@pytest.mark.skipif(not torchcodec_loads(), reason="torchcodec does not load here")
def test_both_decoders_agree(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", height=96, width=128, options={"g": "12", "bf": "2"}, rotation=90)
    with open_video(path, backend="torchcodec") as one, open_video(path, backend="pyav") as other:
        assert (len(one), one.frame_size, one.fps, one.codec) == (len(other), other.frame_size, other.fps, other.codec)
        for short_side, bound in ((None, 4), (48, 40)):  # two color converters; two filters
            a, b = (reader.get_frames([29, 3, 3], short_side) for reader in (one, other))
            assert a.shape == b.shape
            assert (a.float() - b.float()).abs().max() <= bound
        assert torch.equal(one.get_frames([5]), one.get_frames([4, 5])[1:])
    with pytest.raises(VideoError, match="cannot be read as a video"):
        open_video(b"    ftyp" * 99, backend="torchcodec")
    with pytest.raises(VideoError, match="torchcodec does not get it"):  # it could be a playlist
        open_video(b"no video" * 99, backend="torchcodec")


def test_torchcodec_is_taken_where_it_alone_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mp4", count=2)
    with open_video(path) as video:
        assert type(video).__name__ == "PyAVReader"
    monkeypatch.setattr(api, "find_spec", lambda name: None)
    with open_video(path) as video:
        assert type(video).__name__ == ("TorchcodecReader" if torchcodec_loads() else "PyAVReader")
