"""PyAV's reader against decoding everything in order, on what makes exact indices hard."""

from __future__ import annotations

import io
import itertools
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
from aim_adapters.video.decoding import pyav
from aim_adapters.video.decoding.index import FrameIndex, index_packets
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
    "program.mpg": {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}},
    "refreshed.ts": {"options": {"x264-params": "keyint=10:intra-refresh=1"}},
    "interlaced.mp4": {"options": {"g": "12", "x264-params": "tff=1"}},
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
@pytest.mark.parametrize("bits", [8, 10])
def test_colors_follow_the_matrix_and_the_range_of_the_file(
    tmp_path: Path, matrix: int, full_range: int, bits: int
) -> None:
    colors = np.array([(200, 30, 40), (20, 180, 60), (40, 60, 220), (240, 240, 20), (128, 128, 128), (10, 10, 10)])
    red, green, blue = (colors / 255).T
    k_red, k_blue = (0.299, 0.114) if matrix == 5 else (0.2126, 0.0722)
    luma = k_red * red + (1 - k_red - k_blue) * green + k_blue * blue
    chroma = (blue - luma) / (2 * (1 - k_blue)), (red - luma) / (2 * (1 - k_red))
    scale, offset, spread = (255, 0, 255) if full_range == 2 else (219, 16, 224)
    deeper, pix_fmt, number = (4, "yuv444p10le", np.uint16) if bits == 10 else (1, "yuv444p", np.uint8)
    values = offset + scale * luma, *((128 + spread * each).clip(0, 255) for each in chroma)
    planes = [(deeper * each).round() for each in values]
    path = tmp_path / "colors.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, full_range
        frame = av.VideoFrame(96, 64, pix_fmt)
        frame.colorspace, frame.color_range = matrix, full_range
        for plane, values_of_plane in zip(frame.planes, planes, strict=True):
            row = np.zeros(plane.line_size // np.dtype(number).itemsize, number)
            row[:96] = np.repeat(values_of_plane, 16)
            plane.update(np.tile(row, 64).tobytes())
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with open_video(path, backend="pyav") as video:
        shown = video.get_frames([0])[0, :, 32, 8::16].T.numpy().astype(int)
    assert np.abs(shown - colors).max() <= 2  # two roundings to 8 bits


def test_short_side_makes_frames_smaller_and_never_larger(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", height=96, width=128, options={"qp": "0"})
    with open_video(path, backend="pyav") as video:
        whole, half = video.get_frames([3, 20]), video.get_frames([20, 3], short_side=48)
        assert half.shape == (2, 3, 48, 64)
        for index, frame in zip([20, 3], half.float(), strict=True):
            picture = torch.from_numpy(np.array(pictures(30, height=96, width=128)[index])).permute(2, 0, 1)
            expected = torch.nn.functional.interpolate(picture[None].float(), frame.shape[1:], mode="area")[0]
            error = frame - expected
            assert error.abs().mean() < 3 and error.mean().abs() < 0.5  # swscale's defaults: 4.3, and a level too dark
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


def test_a_file_that_was_cut_off_has_the_frames_that_it_still_holds(tmp_path: Path) -> None:
    content = write(tmp_path / "a.mp4", options={"g": "6"}, muxer={"movflags": "faststart"}).read_bytes()
    expected = decode_all(tmp_path / "a.mp4")
    with open_video(content[: len(content) * 2 // 3], backend="pyav") as video:
        assert 10 < len(video) < 30
        assert same(video.get_frames([9])[0], expected[9])
        video.get_frames([len(video) - 1])


def test_damage_in_the_middle_costs_the_frames_that_it_hit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", options={"g": "10", "bf": "0"})
    expected, content = decode_all(path), bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = next(itertools.islice(container.demux(video=0), 14, None))
        start = content.index(bytes(packet))
        content[start : start + packet.size] = b"\xff" * packet.size
    with open_video(bytes(content), backend="pyav") as video:
        assert len(video) == 30
        with pytest.raises(VideoError, match=r"frame 14 of 30 cannot be decoded: Invalid data"):
            video.get_frames([14])
        for indices in ([13, 25], [25, 13], [12], [21]):
            for frame, index in zip(video.get_frames(indices), indices, strict=True):
                assert same(frame, expected[index]), indices


def test_joined_files_are_read_in_the_order_of_their_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ts", options={"g": "12", "bf": "2"})
    path.write_bytes(path.read_bytes() * 2)  # the times start again
    expected = decode_all(path)
    with open_video(path, backend="pyav") as video:
        assert len(video) == len(expected) == 60
        for index in (59, 3, 33):
            assert same(video.get_frames([index])[0], expected[index])


def test_packets_that_are_not_frames_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fields(packets: Any, **names: str) -> FrameIndex:  # two packets for each frame
        index = index_packets(packets, **names)
        assert index is not None
        return index._replace(frames=sorted([*index.frames, *(pts + 1 for pts in index.frames)]))

    path = write(tmp_path / "a.mp4", options={"g": "12"})
    monkeypatch.setattr(pyav, "index_packets", fields)
    with open_video(path, backend="pyav") as video:
        assert len(video) == 30 and same(video.get_frames([17])[0], decode_all(path)[17])


@pytest.mark.parametrize("threads", [0, 3])
def test_threads_change_no_frame(tmp_path: Path, threads: int) -> None:
    path = write(tmp_path / "a.mp4", options={"g": "12", "bf": "3"})
    expected = decode_all(path)
    with open_video(path, backend="pyav", threads=threads) as video:
        for frame, index in zip(video.get_frames([28, 3, 14]), [28, 3, 14], strict=True):
            assert same(frame, expected[index])


def test_an_avi_is_as_long_as_its_frames_whatever_its_header_says(tmp_path: Path) -> None:
    content = bytearray(write(tmp_path / "a.avi", "mpeg4", options={"g": "12"}).read_bytes())
    for name, offset in ((b"avih", 16), (b"strh", 32)):
        at = content.index(name) + 8 + offset
        assert content[at : at + 4] == (30).to_bytes(4, "little")
        content[at : at + 4] = (999).to_bytes(4, "little")
    with open_video(bytes(content), backend="pyav") as video:
        assert len(video) == 30
        assert video.key_frames == [0, 12, 24]  # of MPEG-4 without B-frames packets tell all
        assert same(video.get_frames([29])[0], decode_all(tmp_path / "a.avi")[29])


def write_streams(path: Path, *, cover: bool, frames: int) -> Path:
    """Write a stream of pictures of 100 x 100, cover art or a video, and ``frames`` frames of 64 x 48."""
    with av.open(str(path), "w") as container:
        streams: list[Any] = [container.add_stream("mjpeg", rate=25)]
        if frames:
            streams.append(container.add_stream("libx264", rate=25))
        for stream, size, pix_fmt in zip(streams, ((100, 100), (64, 48)), ("yuvj420p", "yuv420p"), strict=False):
            (stream.width, stream.height), stream.pix_fmt = size, pix_fmt
        if cover:
            streams[0].disposition = av.stream.Disposition.attached_pic
        for stream, count in zip(streams, (1 if cover else 5, frames), strict=False):
            for picture in pictures(count, height=stream.height, width=stream.width):
                container.mux(stream.encode(av.VideoFrame.from_image(picture)))
            container.mux(stream.encode(None))
    return path


def test_cover_art_is_not_the_video(tmp_path: Path) -> None:
    with open_video(write_streams(tmp_path / "clip.mp4", cover=True, frames=10), backend="pyav") as video:
        assert video.frame_size == (48, 64) and len(video) == 10
    with pytest.raises(VideoError, match=r"song\.mp4: has no video stream; it holds a cover picture"):
        open_video(write_streams(tmp_path / "song.mp4", cover=True, frames=0), backend="pyav")
    with open_video(write_streams(tmp_path / "two.mkv", cover=False, frames=10), backend="pyav") as video:
        assert (video.frame_size, len(video)) in (((48, 64), 10), ((100, 100), 5))  # one of them


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
