"""Opens a video: tells what holds it, and chooses who decodes it."""

from __future__ import annotations

import functools
import os
import re
import stat
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Literal

from aim_adapters.arguments import require_choice, require_integer, shown
from aim_adapters.errors import VideoError
from aim_adapters.video.decoding.reader import VideoReader

BACKENDS = ("auto", "pyav", "torchcodec")
Backend = Literal["auto", "pyav", "torchcodec"]

# What FFmpeg would take for an address: a protocol before the path. A drive letter of Windows is none.
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(,[^:]*)?:")
_PICTURES = (b"GIF87a", b"GIF89a", b"\x89PNG\r\n\x1a\n")


def open_video(
    source: str | os.PathLike[str] | bytes | IO[bytes], backend: Backend = "auto", *, threads: int = 1
) -> VideoReader:
    """Open a video to read some of its frames, by exact index.

    Frames are counted in the order in which they are shown, from 0. They are turned as the file says, and converted to
    RGB by the color matrix and the range that it names; a file that names none is taken for BT.601 and limited range,
    as FFmpeg does. Interlaced frames stay interlaced. Of several video streams the one that FFmpeg holds for the best
    is read; cover art is none. What an edit list cuts away is not shown, and not counted. Of a damaged file the frames
    that can be decoded are counted where the damage shows; a frame that turns out to be lost is an error when it is
    asked for. Nothing but the file itself is opened: no address, and no other file that it names.

    Args:
        source: A path; the bytes of a file; a file object open for reading bytes, which can seek; or a folder of
            pictures, which are the frames in the natural order of their names. Animated GIF, PNG and WebP are videos.
        backend: ``"pyav"``; ``"torchcodec"``, which reads MP4, QuickTime, Matroska, WebM and AVI, with the limits that
            it has where frames refer to others across key frames; or ``"auto"``: PyAV, which is exact on all of them,
            or torchcodec where it alone is installed and loads.
        threads: Threads that decode the video; 0 lets FFmpeg choose. Leave it at 1 where several workers read videos.

    Returns:
        The reader, a context manager.

    Raises:
        TypeError: ``source`` is none of these.
        ConfigError: ``backend`` is none of these, or ``threads`` is not an integer >= 0.
        VideoError: There is no such file, or it holds no video that can be decoded. The message begins with its name.
        ImportError: Neither decoder, or not the one that was named, is installed.
    """
    require_choice("backend", backend, BACKENDS)
    threads = require_integer("threads", threads, low=0, high=256)
    name, content = _content(source)
    head = _head(name, content)
    if head is None:
        from aim_adapters.video.decoding.pictures import FolderReader

        assert isinstance(content, Path)
        return FolderReader(content, name)
    if head.startswith(_PICTURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        from aim_adapters.video.decoding.pictures import AnimationReader

        return AnimationReader(content, name)
    if backend == "torchcodec" or (backend == "auto" and find_spec("av") is None and torchcodec_loads()):
        from aim_adapters.video.decoding.torchcodec import TorchcodecReader

        return TorchcodecReader(content, name, threads=threads, head=head)
    from aim_adapters.video.decoding.pyav import PyAVReader

    return PyAVReader(content, name, threads=threads)


@functools.cache
def torchcodec_loads() -> bool:
    """Return whether torchcodec is installed, and finds the FFmpeg that it needs."""
    try:
        import torchcodec.decoders
    except (ImportError, OSError, RuntimeError):  # RuntimeError: no FFmpeg that it was built for
        return False
    return bool(torchcodec.decoders)


def _content(source: Any) -> tuple[str, Path | bytes | IO[bytes]]:
    """Return the name of a source, and what to read."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>", bytes(source)
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        text = os.fsdecode(path)
        if not text:
            raise VideoError("'': is an empty name")
        if len(text) > 4096:  # longer than a system lets a path be
            raise VideoError(f"{text[:200]}…: cannot be read: a name of {len(text)} characters is too long")
        if _PROTOCOL.match(text) and not os.path.lexists(text):
            raise VideoError(f"{text}: there is no such file, and addresses are not opened; pass the bytes of the file")
        return text, Path(text)
    if callable(getattr(source, "read", None)) and callable(getattr(source, "seek", None)):
        name = getattr(source, "name", None)
        return (name if isinstance(name, str) else f"<{type(source).__name__}>"), source
    expected = "a path, bytes, a file object open for reading bytes or a folder of pictures"
    raise TypeError(f"source must be {expected}, got {shown(source)}")


def _head(name: str, content: Path | bytes | IO[bytes]) -> bytes | None:
    """Return the first bytes of a file; None for a folder."""
    try:
        if isinstance(content, Path):
            mode = content.stat().st_mode
            if stat.S_ISDIR(mode):
                return None
            if not stat.S_ISREG(mode):
                raise VideoError(f"{name}: is neither a file nor a folder")
            with content.open("rb") as file:
                head = file.read(16)
        elif isinstance(content, bytes):
            head = content[:16]
        else:
            content.seek(0)
            head = content.read(16)
            content.seek(0)
    except FileNotFoundError as error:
        raise VideoError(f"{name}: there is no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a closed file, a NUL in the path
        raise VideoError(f"{name}: cannot be read: {error}") from error
    if not isinstance(head, bytes):
        raise TypeError(f"{name}: the file object must be open for reading bytes, got {type(head).__name__} from it")
    if not head:
        raise VideoError(f"{name}: is empty (0 bytes)")
    return head
