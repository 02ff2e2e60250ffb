"""PyAV's reader against decoding everything in order, on what makes exact indices hard."""

from __future__ import annotations

import io
import os
import pickle
import random
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from aim_adapters.video import VideoError, open_video
from tests.video.videos import decode_all, pictures, write

VFR = [40 * i + 20 * (i % 2) for i in range(30)]
FILES: dict[str, dict[str, Any]] = {
    "b-frames.mp4": {"options": {"g": "12", "bf": "3"}},
    "open-gop.mp4": {"options": {"g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}},
    "variable-rate.mp4": {"options": {"g": "10"}, "times": VFR},
    "plain.mkv": {"options": {"g": "12"}},
    "stream.ts": {"options": {"g": "12"}},
    "reordered.avi": {"options": {"g": "12", "bf": "2"}},
    "elementary.h264": {"options": {"g": "12"}},
    "odd.mp4": {"height": 49, "width": 63, "pix_fmt": "yuv444p"},
    "10-bit.mp4": {"pix_fmt": "yuv420p10le"},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=12:open-gop=1:log-level=none"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "lag-in-frames": "16", "cpu-used": "8"}},
    "hidden.webm": {"codec": "libvpx", "options": {"g": "12", "lag-in-frames": "16", "auto-alt-ref": "1"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "12"}},
    "packed.avi": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "motion-jpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
}
if "libsvtav1" in av.codecs_available:
    FILES["av1.mkv"] = {"codec": "libsvtav1", "height": 64, "options": {"preset": "12", "g": "12"}}


def same(frame: torch.Tensor, expected: np.ndarray) -> bool:
    return np.array_equal(frame.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("name", FILES)
def test_every_index_is_the_frame_that_full_decoding_gives(tmp_path: Path, name: str) -> None:
    os.environ.setdefault("SVT_LOG", "0")
    path = write(tmp_path / name, **FILES[name])
    expected = decode_all(path)
    with open_video(path, backend="pyav") as video:
        assert len(video) == len(expected) == 30
        assert video.frame_size == expected[0].shape[:2]
        draw = random.Random(0)
        for indices in [[draw.randrange(30) for _ in range(4)] for _ in range(8)] + [[29], [0], [13, 12, 11], [12]]:
            frames = video.get_frames(indices)
            assert frames.shape == (len(indices), 3, *video.frame_size) and frames.dtype == torch.uint8
            assert all(same(frame, expected[index]) for frame, index in zip(frames, indices, strict=True)), indices


def test_an_edit_list_cuts_frames_away(tmp_path: Path) -> None:
    whole, cut = write(tmp_path / "whole.mp4", options={"g": "12", "bf": "2"}), tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.pts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - 5 * 512, packet.dts - 5 * 512, stream
                target.mux(packet)
    expected = decode_all(cut)
    assert 0 < len(expected) < 30
    with open_video(cut, backend="pyav") as video:
        assert len(video) == len(expected)
        assert all(same(frame, full) for frame, full in zip(video.get_frames(range(len(video))), expected, strict=True))


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_frames_are_turned_as_the_file_says(tmp_path: Path, rotation: int) -> None:
    path = write(tmp_path / "phone.mp4", count=2, rotation=rotation)
    turned = [np.rot90(frame, rotation // 90) for frame in decode_all(path)]  # counterclockwise
    with open_video(path, backend="pyav") as video:
        assert video.frame_size == turned[0].shape[:2]
        assert same(video.get_frames([1])[0], turned[1])
        assert video.get_frames([1], short_side=24).shape[2:] == ((24, 32) if rotation % 180 == 0 else (32, 24))


@pytest.mark.parametrize("matrix", [5, 1])  # BT.601, BT.709
@pytest.mark.parametrize("full_range", [1, 2])  # limited, full
def test_colors_follow_the_matrix_and_the_range_of_the_file(tmp_path: Path, matrix: int, full_range: int) -> None:
    colors = np.array([(200, 30, 40), (20, 180, 60), (40, 60, 220), (240, 240, 20), (128, 128, 128), (10, 10, 10)])
    red, green, blue = (colors / 255).T
    k_red, k_blue = (0.299, 0.114) if matrix == 5 else (0.2126, 0.0722)
    luma = k_red * red + (1 - k_red - k_blue) * green + k_blue * blue
    chroma = (blue - luma) / (2 * (1 - k_blue)), (red - luma) / (2 * (1 - k_red))
    scale, offset, spread = (255, 0, 255) if full_range == 2 else (219, 16, 224)
    planes = [(offset + scale * luma).round(), *((128 + spread * each).round().clip(0, 255) for each in chroma)]
    path = tmp_path / "colors.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, full_range
        frame = av.VideoFrame(96, 64, "yuv444p")
        frame.colorspace, frame.color_range = matrix, full_range
        for plane, values in zip(frame.planes, planes, strict=True):
            row = np.zeros(plane.line_size, np.uint8)
            row[:96] = np.repeat(values, 16)
            plane.update(np.tile(row, 64).tobytes())
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with open_video(path, backend="pyav") as video:
        shown = video.get_frames([0])[0, :, 32, 8::16].T.numpy().astype(int)
    assert np.abs(shown - colors).max() <= 2  # two roundings to 8 bits


def test_short_side_makes_frames_smaller_and_never_larger(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", height=96, width=128)
    with open_video(path, backend="pyav") as video:
        whole, half = video.get_frames([3, 20]), video.get_frames([20, 3], short_side=48)
        assert half.shape == (2, 3, 48, 64)
        averaged = torch.nn.functional.avg_pool2d(whole.flip(0).float(), 2)
        assert (half.float() - averaged).abs().mean() < 6  # of some 40 between neighbors
        assert torch.equal(video.get_frames([3, 20], short_side=500), whole)
        assert torch.equal(video.get_frames([3], short_side=48), half[1:])  # whatever else is asked for


def test_bytes_and_file_objects_are_read_as_the_file_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4")
    with open_video(path, backend="pyav") as video:
        expected = video.get_frames([29, 4])
    content = path.read_bytes()
    with path.open("rb") as file:
        for source in (content, io.BytesIO(content), file, str(path)):
            with open_video(source, backend="pyav") as video:
                assert torch.equal(video.get_frames([29, 4]), expected)
        assert not file.closed  # it is the caller's


def test_a_damaged_end_leaves_the_frames_before_it(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.mkv", options={"g": "6"})
    content, expected = whole.read_bytes(), decode_all(whole)
    with open_video(content[: len(content) // 2], backend="pyav") as video:
        assert 3 < len(video) < 30
        assert same(video.get_frames([2])[0], expected[2])
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(write(tmp_path / "b.mp4").read_bytes()[:900])
    with pytest.raises(VideoError, match=r"^\S*broken\.mp4: cannot be read as a video"):
        open_video(broken, backend="pyav")


def test_cover_art_is_not_the_video(tmp_path: Path) -> None:
    cover = tmp_path / "cover.png"
    pictures(1, height=100, width=100)[0].save(cover)
    path = tmp_path / "song.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_image(pictures(1)[0])))
        container.mux(stream.encode(None))
    with open_video(path, backend="pyav") as video:
        assert video.frame_size == (48, 64)


def test_a_reader_stays_where_it_is(tmp_path: Path) -> None:
    with open_video(write(tmp_path / "a.mp4"), backend="pyav") as video:
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(video)
    with pytest.raises(VideoError, match="is closed"):
        video.get_frames([0])


def test_memory_and_files_do_not_grow(tmp_path: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4  # KiB

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    path, sizes = write(tmp_path / "a.mp4", count=6), []
    for _turn in range(3):
        for _ in range(150):
            with open_video(path, backend="pyav") as video:
                video.get_frames([5], short_side=24)
        sizes.append(resident())
    assert sizes[2] - sizes[1] < 2048, sizes  # 150 frames of any size would be more
