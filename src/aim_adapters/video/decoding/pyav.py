"""Videos decoded by PyAV, whose wheels carry FFmpeg.

A frame is known by the time at which it is shown. The times are read from the packets, without decoding; to reach a
frame the file is entered at the last key frame before it. Where packets do not tell which frames come out, as a packet
may hold none or has no time, the video is decoded once to see.
"""

from __future__ import annotations

import bisect
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aim_adapters.errors import VideoError
from aim_adapters.video.decoding.reader import VideoReader, require_size

# No demuxer that opens other files or addresses: a playlist may come from anybody.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,h264,hevc,av1,obu,ivf,m4v,mjpeg,"
    "mxf,nut,wtv,rm,dv,y4m,yuv4mpegpipe,apng,nsv,swf,vob,live_flv"
)
# Of these a packet may hold no frame that is shown, or two.
_UNEVEN = frozenset({"mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "vp6", "vp6f", "vp8"})
# A seek costs as much as decoding so many frames.
_SEEK = 3


class _Packet(NamedTuple):
    pts: int
    dts: int
    key: bool
    discard: bool


class _Times(NamedTuple):
    """When frames are shown, and how to reach them.

    Attributes:
        frames: Time of each frame, ascending.
        keys: Times of key frames, ascending, with the times at which they are decoded.
        known: Whether every frame has a time of its own; if not, frames are counted from the start.
    """

    frames: list[int]
    keys: list[tuple[int, int]]
    known: bool


class PyAVReader(VideoReader):
    """A video that PyAV decodes.

    Args:
        content: Path, bytes or file object.
        name: Name for errors.
        threads: Threads that decode it; 0 lets FFmpeg choose.

    Raises:
        ImportError: PyAV is not installed.
        VideoError: There is no video, or it cannot be decoded.
    """

    def __init__(self, content: Path | bytes | IO[bytes], name: str, *, threads: int = 1) -> None:
        try:
            import av
        except ImportError as error:
            raise ImportError("reading videos needs PyAV; install aim-adapters[video]") from error
        self._av, self.name, self._threads = av, name, threads
        self._source: Any = io.BytesIO(content) if isinstance(content, bytes) else content
        self._container: Any = None
        self._running: Iterator[Any] | None = None
        try:
            self._open()
            self._times = self._from_packets() or self._from_frames()
            first = self._first_frame()
        except (av.FFmpegError, OSError, ValueError) as error:
            self.close()
            raise VideoError(f"{name}: cannot be read as a video: {_reason(error)}") from error
        except VideoError:
            self.close()
            raise
        if first is None or not self._times.frames:
            self.close()
            raise VideoError(f"{name}: has no frame that can be decoded ({self.codec})")
        height, width = require_size(name, first.height, first.width)
        self._turn = _turn(first)
        self.frame_size = (width, height) if self._turn.transposes else (height, width)
        # What precedes the first frame that the decoder gives cannot be decoded: it refers to frames that are cut away.
        if self._times.known and first.pts is not None:
            start = bisect.bisect_left(self._times.frames, first.pts)
            self._times = self._times._replace(frames=self._times.frames[start:])
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate else math.nan
        if self._times.known:
            frames = self._times.frames
            self.key_frames = sorted({bisect.bisect_left(frames, time) for time, _ in self._times.keys} - {len(frames)})

    def __len__(self) -> int:
        return len(self._times.frames)

    def close(self) -> None:
        """Close the file; one that the caller opened stays open."""
        container, self._container = self._container, None
        self._running = None
        if container is not None:
            container.close()

    def _open(self) -> None:
        source = self._source
        if isinstance(source, Path):
            source = "file:" + str(source)
        else:
            source.seek(0)
        options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
        # Titles need not be text; from version 19 on PyAV takes them as they come.
        lenient: dict[str, Any] = {"metadata_errors": "replace"} if int(self._av.__version__.split(".")[0]) < 19 else {}
        self._container = self._av.open(source, options=options, **lenient)
        streams = [s for s in self._container.streams.video if "attached_pic" not in str(s.disposition)]
        best = self._container.streams.best("video")
        if not streams:
            held = sorted({stream.type for stream in self._container.streams}) or ["nothing"]
            raise VideoError(f"{self.name}: has no video stream; it holds {', '.join(held)}")
        self._stream = best if best in streams else streams[0]
        context = self._stream.codec_context
        if context is None:
            raise VideoError(f"{self.name}: its video is in a codec that this FFmpeg does not have")
        self.codec = context.name
        context.thread_count, context.thread_type = self._threads, "AUTO" if self._threads != 1 else "NONE"
        self._running = None
        self._at = -1  # index of the last frame that came out

    def _from_packets(self) -> _Times | None:
        """Return the times that packets state, or None if they do not tell which frames come out."""
        packets, known = [], self.codec not in _UNEVEN
        for packet in self._container.demux(self._stream):
            if packet.pts is None:
                known = known and not packet.size  # the last one is empty
            else:
                dts = packet.pts if packet.dts is None else packet.dts
                packets.append(_Packet(packet.pts, dts, packet.is_keyframe, packet.is_discard))
        if self._container.format.name == "avi":  # which states when frames are decoded, not when they are shown
            known = known and all(packet.key for packet in packets)
        frames = sorted(packet.pts for packet in packets if not packet.discard)
        if not known or not frames or len(set(frames)) < len(frames):
            self._rewind()
            return None
        # The frames that a key frame lets one decode are those which are shown after it; those that are decoded after
        # it and shown before it refer to earlier ones. A key frame of earlier time that is decoded later is none.
        keys: list[tuple[int, int]] = []
        for packet in packets:
            if packet.key and (not keys or packet.pts > keys[-1][0]):
                keys.append((packet.pts, packet.dts))
        return _Times(frames, keys, known=True)

    def _from_frames(self) -> _Times:
        """Return the times of the frames that come out when all is decoded."""
        times, keys = [], []
        for frame in self._frames():
            times.append(frame.pts)
            if frame.key_frame and frame.pts is not None:
                keys.append((frame.pts, frame.pts if frame.dts is None else frame.dts))
        known = None not in times and all(before < after for before, after in itertools.pairwise(times))
        return _Times(times if known else list(range(len(times))), keys if known else [], known)

    def _first_frame(self) -> Any:
        """Return the first frame that can be decoded, or None."""
        if self._times.keys:
            pts, dts = self._times.keys[0]
            self._container.seek(dts, stream=self._stream, backward=True, any_frame=False)
            first = next(self._frames(), None)
            if first is not None and first.pts is not None and first.pts <= max(pts, self._times.frames[0]):
                return first
        self._rewind()
        return next(self._frames(), None)

    def _rewind(self) -> None:
        """Return to the start of the file."""
        self._container.close()
        self._open()

    def _frames(self) -> Iterator[Any]:
        """Decode from where the file stands. A damaged end of the file ends the frames."""
        return iter(self._container.decode(self._stream))

    def _read(self, indices: Sequence[int], size: tuple[int, int]) -> Sequence[Tensor]:
        if self._container is None:
            raise VideoError(f"{self.name}: is closed")
        try:
            return [self._convert(self._reach(index), size) for index in indices]
        except (self._av.FFmpegError, OSError, ValueError) as error:
            self._rewind()
            raise VideoError(f"{self.name}: cannot be decoded: {_reason(error)}") from error

    def _reach(self, index: int) -> Any:
        """Return a frame; the file is left behind it."""
        times = self._times
        if not times.known:
            return self._count_to(index)
        wanted = times.frames[index]
        key = bisect.bisect_right(times.keys, (wanted, math.inf)) - 1
        from_key = index - bisect.bisect_left(times.frames, times.keys[key][0]) if key >= 0 else index
        running = self._running is not None and self._at < index
        frames = None
        if running and index - self._at <= from_key + _SEEK:
            frames = self._go_on(wanted)
        # The entry before is tried where a container does not lead to the one that was meant.
        while frames is None and key >= 0:
            self._container.seek(times.keys[key][1], stream=self._stream, backward=True, any_frame=False)
            self._running = self._frames()
            frames, key = self._go_on(wanted), key - 1
        if frames is None:
            self._rewind()
            self._running = self._frames()
            frames = self._go_on(wanted)
        if frames is None:
            raise VideoError(f"{self.name}: frame {index} of {len(self)} cannot be decoded")
        self._at = index
        return frames

    def _go_on(self, wanted: int) -> Any:
        """Return the frame of a time, or None if it does not come."""
        assert self._running is not None
        for frame in self._running:
            if frame.pts == wanted:
                return frame
            if frame.pts is not None and frame.pts > wanted:
                break
        self._running = None
        return None

    def _count_to(self, index: int) -> Any:
        if self._running is None or self._at >= index:
            self._rewind()
            self._running = self._frames()
        assert self._running is not None
        for frame in self._running:
            self._at += 1
            if self._at == index:
                return frame
        raise VideoError(f"{self.name}: frame {index} of {len(self)} cannot be decoded")

    def _convert(self, frame: Any, size: tuple[int, int]) -> Tensor:
        """Return a frame as ``uint8 [H, W, 3]``."""
        height, width = size[::-1] if self._turn.transposes else size
        rgb = frame.reformat(width=width, height=height, format="rgb24", src_color_range=frame.color_range, threads=1)
        return torch.from_numpy(self._turn(rgb.to_ndarray()))


class _Turn(NamedTuple):
    """How a picture is turned to be shown."""

    transposes: bool = False
    flips_rows: bool = False
    flips_columns: bool = False

    def __call__(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return the picture as it is shown."""
        if self.transposes:
            picture = picture.swapaxes(0, 1)
        if self.flips_rows:
            picture = picture[::-1]
        return np.ascontiguousarray(picture[:, ::-1] if self.flips_columns else picture)


def _turn(frame: Any) -> _Turn:
    """Read the display matrix of a frame: x' = a x + c y, y' = b x + d y, with y downwards."""
    if not frame.rotation:  # PyAV loses memory with each look at side data
        return _Turn()
    data = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return _Turn()
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
    if abs(b) > abs(a):
        return _Turn(True, flips_rows=b < 0, flips_columns=c < 0)
    return _Turn(False, flips_rows=d < 0, flips_columns=a < 0)


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text[:300] or type(error).__name__
