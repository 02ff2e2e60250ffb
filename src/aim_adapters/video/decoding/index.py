"""Where the frames of a file are: read from its packets, without decoding."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

# Containers whose packets state when their frames are shown. AVI states when they are decoded, MPEG-PS only now and
# then, MXF what FFmpeg makes of it.
_STATED = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv", "asf", "ogg", "nut", "ivf"})
# Codecs without frames that are shown in another order than they are decoded.
_IN_ORDER = frozenset(
    {"ffv1", "h263", "huffyuv", "mjpeg", "msmpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "rawvideo"}
)
# Of these a packet may hold no frame, or two, and does not tell.
_UNEVEN = frozenset({"vp6", "vp6f", "vp6a"})
# An MPEG-4 picture that is shorter may be one that only says "as before", which is not shown.
_LEAST = 16


class Entry(NamedTuple):
    """A key frame: where decoding can start.

    Attributes:
        pts: When it is shown.
        dts: When it is decoded; seeking goes by this.
    """

    pts: int
    dts: int


class FrameIndex(NamedTuple):
    """When frames are shown, and where decoding can start.

    Attributes:
        frames: Time of each frame, ascending.
        entries: Key frames, ascending. Empty if times lead nowhere: then frames are counted from the start.
    """

    frames: list[int]
    entries: list[Entry]

    def entry_before(self, pts: int) -> int:
        """Return the number of the last key frame that is shown at a time or before, or -1.

        Args:
            pts: The time.
        """
        return bisect.bisect_right(self.entries, pts, key=lambda entry: entry.pts) - 1

    def place(self, entry: int) -> int:
        """Return the index of the frame that is a key frame; 0 for -1, the start of the file.

        Args:
            entry: Number of the key frame.
        """
        return bisect.bisect_left(self.frames, self.entries[entry].pts) if entry >= 0 else 0


def index_packets(packets: Iterable[Any], *, container: str, codec: str) -> FrameIndex | None:
    """Return when frames are shown, or None if packets do not tell which frames come out.

    The frames that a key frame lets one decode are those which are shown after it. Those that are decoded after it and
    shown before it (open groups of pictures) refer to earlier ones, so that they are reached from an earlier key frame.

    Args:
        packets: Every packet of the stream, from the start of the file.
        container: FFmpeg's name of the container.
        codec: FFmpeg's name of the codec.
    """
    if codec in _UNEVEN or (container not in _STATED and container != "avi"):
        return None
    frames: list[int] = []
    entries: list[Entry] = []
    latest_pts = latest_dts = -math.inf
    for packet in packets:
        pts, dts, key = packet.pts, packet.dts, packet.is_keyframe
        if pts is None:
            if packet.size:
                return None
            continue  # the last one is empty
        if not entries and not key:
            return None  # whether a decoder shows what it cannot decode is its own affair
        # After a jump backwards, as where files were joined, the order of times is not the order of frames.
        if (dts is not None and dts < latest_dts) or (key and pts <= latest_pts):
            return None
        latest_dts, latest_pts = latest_dts if dts is None else dts, max(latest_pts, pts)
        shown = _shown(packet, codec, in_order=container == "avi")
        if shown is None or packet.is_corrupt:
            return None
        if key:
            entries.append(Entry(pts, pts if dts is None else dts))
        if shown and not packet.is_discard:
            frames.append(pts)
    frames.sort()
    if not frames or not entries or any(a == b for a, b in itertools.pairwise(frames)):
        return None
    return FrameIndex(frames, entries)


def _shown(packet: Any, codec: str, *, in_order: bool) -> bool | None:
    """Return whether a packet holds one frame that is shown, or none; None if it cannot be told.

    ``in_order``: the packet must be of a kind that is shown when it is decoded.
    """
    if codec == "mpeg4":
        data = bytes(packet)
        at = data.find(b"\x00\x00\x01\xb6")  # vop_start_code; two bits of vop_coding_type follow: I, P, B, S
        if len(data) < _LEAST or not 0 <= at < len(data) - 4 or data.find(b"\x00\x00\x01\xb6", at + 4) >= 0:
            return None
        return None if in_order and data[at + 4] >> 6 == 2 else True
    if codec == "vp8":
        return bool(bytes(packet)[0] & 0x10) if packet.size else None  # show_frame
    if not packet.size or (in_order and codec not in _IN_ORDER):
        return None
    return True
