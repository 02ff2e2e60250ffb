"""Videos decoded by PyAV, whose wheels carry FFmpeg.

A frame is known by the time at which it is shown. To reach it the file is entered at the last key frame before it, and
what follows is decoded up to it. Where the packets of a file do not tell which frames come out, as a packet may hold
none or has no time, the video is decoded once to count them, and read from its start.

Damage: a packet that cannot be decoded is left out, and decoding goes on behind it.
"""

from __future__ import annotations

import io
import itertools
import math
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aim_adapters.errors import VideoError
from aim_adapters.video.decoding.index import Entry, FrameIndex, index_packets
from aim_adapters.video.decoding.reader import MOST_PIXELS, VideoReader, require_size

# No demuxer that opens other files or addresses: a playlist may come from anybody.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,h264,hevc,av1,obu,ivf,m4v,mjpeg,"
    "mxf,nut,wtv,rm,dv,y4m,yuv4mpegpipe,apng,nsv,swf,vob,live_flv"
)
# av.video.reformatter.ColorRange
_LIMITED, _FULL = 1, 2
# av.video.reformatter.Interpolation: BILINEAR | FULL_CHR_H_INT. Without the second, chroma is scaled to half the width,
# and the table that then makes RGB darkens by a level.
_SCALING = 0x2002
# av.stream.Disposition
_ATTACHED_PIC = 1024
# A seek costs as much as decoding so many frames.
_SEEK = 3


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
        super().__init__(name)
        try:
            import av
            from av.video.reformatter import VideoReformatter
        except ImportError as error:
            raise ImportError("reading videos needs PyAV; install aim-adapters[video]") from error
        self._av, self._threads = av, threads
        self._source: Any = io.BytesIO(content) if isinstance(content, bytes) else content
        self._container: Any = None
        self._damage: str | None = None  # the last error while decoding
        self._needed: Collection[int] | None = None  # times of the frames that are asked for; None: all
        self._reformatter: Any = VideoReformatter()
        self._version = int(av.__version__.partition(".")[0])
        try:
            self._open()
            self._index = self._indexed()
            first = self._first()
            height, width = require_size(name, first.height, first.width)
        except (av.FFmpegError, IndexError, OSError, ValueError) as error:  # IndexError: a stream that came later
            self.close()
            raise VideoError(f"{name}: cannot be read as a video: {_reason(error)}") from error
        except VideoError:
            self.close()
            raise
        self._turn = _turn(first)
        self.frame_size = (width, height) if self._turn.transposes else (height, width)
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate else math.nan
        if self._index.entries:
            places = {self._index.place(entry) for entry in range(len(self._index.entries))}
            self.key_frames = sorted(places - {len(self)})

    def __len__(self) -> int:
        return len(self._index.frames)

    def close(self) -> None:
        """Close the file; one that the caller opened stays open."""
        container, self._container = self._container, None
        self._running: Iterator[Any] = iter(())
        if container is not None:
            container.close()

    def _open(self) -> None:
        """Open the file at its start."""
        self.close()
        source = self._source
        if isinstance(source, Path):
            source = "file:" + os.fspath(source)
        else:
            source.seek(0)
        # Not `options`: before PyAV 17 those crash where streams are found while reading, as in MPEG-PS.
        options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
        # Titles need not be text; from version 19 on PyAV takes them as they come.
        lenient: dict[str, Any] = {"metadata_errors": "replace"} if self._version < 19 else {}
        self._container = self._av.open(source, container_options=options, **lenient)
        self._stream = self._chosen()
        context = self._stream.codec_context
        # "av1", whatever decodes it; older PyAV knows the decoder alone.
        self.codec = getattr(context.codec, "canonical_name", context.name)
        if context.width and context.height:
            require_size(self.name, context.height, context.width)
        context.thread_count, context.thread_type = self._threads, "AUTO" if self._threads != 1 else "NONE"
        context.options = {"max_pixels": str(MOST_PIXELS)}
        self._running = self._frames()
        self._at = -1  # index of the last frame that came out of it

    def _chosen(self) -> Any:
        """Return the stream that is read."""
        streams = self._container.streams
        # PyAV before 14.2 does not tell cover art; since then it is a flag, which on some versions is an integer.
        videos = [s for s in streams.video if not getattr(getattr(s, "disposition", None), "value", 0) & _ATTACHED_PIC]
        if not videos:
            held = {"a cover picture" if stream.type == "video" else stream.type for stream in streams}
            raise VideoError(f"{self.name}: has no video stream; it holds {', '.join(sorted(held)) or 'nothing'}")
        best = streams.best("video")
        stream = best if best in videos else videos[0]
        if stream.codec_context is None:
            raise VideoError(f"{self.name}: its video is in a codec that this FFmpeg does not have")
        return stream

    def _indexed(self) -> FrameIndex:
        """Return when frames are shown."""
        index = index_packets(self._packets(), container=self._container.format.name, codec=self.codec)
        return self._counted() if index is None or self._damage else index

    def _counted(self) -> FrameIndex:
        """Decode all, and number the frames that come out."""
        self._open()
        count = sum(1 for _ in self._running)
        if not count:
            raise VideoError(f"{self.name}: has no frame that can be decoded ({self._damage or self.codec})")
        return FrameIndex(list(range(count)), [])

    def _first(self) -> Any:
        """Return the first frame, and make the index begin with it."""
        if self._index.entries:
            self._enter(0)
            came = list(itertools.islice(self._running, 2))
            # What precedes the first frame cannot be decoded: it refers to frames that are cut away.
            times = list(itertools.dropwhile(lambda pts: not came or pts != came[0].pts, self._index.frames))
            if times and times[:2] == [frame.pts for frame in came]:
                self._index, self._at = self._index._replace(frames=times), len(came) - 1
                return came[0]
            self._index = self._counted()  # packets are not frames: they may be fields, or tell other times
        self._open()
        return self._count_to(0)

    def _packets(self) -> Iterator[Any]:
        """Read from where the file stands; damage of the file itself ends it."""
        try:
            yield from self._container.demux(self._stream)
        except self._av.InvalidDataError as error:
            self._damage = _reason(error)
            flush = self._av.Packet()
            flush.stream = self._stream
            yield flush

    def _frames(self, start: Entry | None = None) -> Iterator[Any]:
        """Decode from where the file stands; what comes before the packet of ``start`` is left out."""
        context = self._stream.codec_context
        context.skip_frame = "DEFAULT"
        for packet in self._packets():
            if start is not None:
                if packet.pts != start.pts or not packet.is_keyframe:
                    if packet.dts is not None and packet.dts > start.dts:
                        return  # the container led behind it
                    continue
                start = None
            if self.codec == "h264":  # frames that no other refers to are decoded only if they are asked for
                skipped = self._needed is not None and packet.pts is not None and packet.pts not in self._needed
                context.skip_frame = "NONREF" if skipped else "DEFAULT"
            try:
                frames = packet.decode()
            except self._av.FFmpegError as error:
                self._damage = _reason(error)
                continue
            yield from frames

    def _enter(self, entry: int) -> None:
        """Go to a key frame."""
        start = self._index.entries[entry]
        try:
            self._container.seek(start.dts, stream=self._stream, backward=True, any_frame=False)
        except self._av.FFmpegError:  # some files cannot be entered
            self._open()
        self._running = self._frames(start)

    def _read(self, indices: Sequence[int], size: tuple[int, int]) -> Sequence[Tensor]:
        if self._container is None:
            raise VideoError(f"{self.name}: is closed")
        self._damage = None
        find = self._reach if self._index.entries else self._count_to
        if self._index.entries:
            self._needed = {self._index.frames[index] for index in indices}
        try:
            return [self._convert(find(index), size) for index in indices]
        except (self._av.FFmpegError, IndexError, OSError, ValueError) as error:
            raise VideoError(f"{self.name}: cannot be decoded: {_reason(error)}") from error
        finally:
            self._needed = None

    def _reach(self, index: int) -> Any:
        """Return a frame; the file is left behind it."""
        pts, needed = self._index.frames[index], self._needed
        entry = max(self._index.entry_before(pts), 0)
        frame = None
        if self._at < index and self._index.place(entry) <= self._at + _SEEK:
            frame = self._go_on(pts)
        # Then from the key frame; should it not do, from the one before it and from the start, decoding all.
        for start in (entry, max(entry - 1, 0), 0):
            if frame is None:
                self._enter(start)
                frame = self._go_on(pts)
                self._needed = None
        self._needed = needed
        if frame is None:
            raise self._lost(index)
        self._at = index
        return frame

    def _go_on(self, pts: int) -> Any:
        """Return the frame of a time, or None if it does not come."""
        for frame in self._running:
            if frame.pts == pts:
                return frame
            if frame.pts is not None and frame.pts > pts:
                break
        self._running = iter(())
        return None

    def _count_to(self, index: int) -> Any:
        """Return a frame, counted from the start of the file."""
        if self._at >= index:
            self._open()
        for frame in self._running:
            self._at += 1
            if self._at == index:
                return frame
        self._at = len(self)  # the file has to be opened again
        raise self._lost(index)

    def _lost(self, index: int) -> VideoError:
        reason = f": {self._damage}" if self._damage else ""
        return VideoError(f"{self.name}: frame {index} of {len(self)} cannot be decoded{reason}")

    def _convert(self, frame: Any, size: tuple[int, int]) -> Tensor:
        """Return a frame as ``uint8 [H, W, 3]``."""
        height, width = size[::-1] if self._turn.transposes else size
        full = frame.color_range == _FULL
        if self._version >= 17:
            options = {"src_color_range": frame.color_range, "threads": 1}
        else:  # which ignores the matrix of the file where both ranges are the same
            options = {"src_color_range": _FULL if full else _LIMITED, "dst_color_range": _LIMITED if full else _FULL}
        if (width, height) != (frame.width, frame.height) and self._version >= 14:  # 13 knows no pairs of flags
            options["interpolation"] = _SCALING
        rgb = self._reformatter.reformat(frame, width, height, "rgb24", **options)
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
    # A look at side data keeps the frame until garbage is collected. PyAV before 14.2 has no other way.
    if not getattr(frame, "rotation", True):
        return _Turn()
    held = frame.side_data
    for item in held:  # from PyAV 19 on the types of what is held, before that what is held itself
        kind = getattr(item, "type", item)
        if kind.name == "DISPLAYMATRIX":
            matrix = bytes(held[item] if kind is item else item)
            break
    else:
        return _Turn()
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) > abs(a):
        return _Turn(True, flips_rows=b < 0, flips_columns=c < 0)
    return _Turn(False, flips_rows=d < 0, flips_columns=a < 0)


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text[:300] or type(error).__name__
