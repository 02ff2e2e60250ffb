"""Opens a video: tells what holds it, and chooses who decodes it."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import IO, Any, Literal

from aim_adapters.arguments import require_choice, shown
from aim_adapters.errors import VideoError
from aim_adapters.video.decoding.reader import VideoReader

BACKENDS = ("auto", "pyav", "torchcodec")
Backend = Literal["auto", "pyav", "torchcodec"]

# What FFmpeg would take for an address: a protocol before the path. A drive letter of Windows is none.
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(,[^:]*)?:")
_PICTURES = (b"GIF87a", b"GIF89a", b"\x89PNG\r\n\x1a\n")


def open_video(source: str | os.PathLike[str] | bytes | IO[bytes], backend: Backend = "auto") -> VideoReader:
    """Open a video to read some of its frames, by exact index.

    Frames are counted in the order in which they are shown, from 0. They are turned as the file says, and converted to
    RGB by the color matrix and the range that it names; a file that names none is taken for BT.601 and limited range,
    as FFmpeg does. Interlaced frames stay interlaced. Of several video streams the one that FFmpeg holds for the best
    is read; cover art is none. What an edit list cuts away is not shown, and not counted.

    Args:
        source: A path; the bytes of a file; a file object open for reading bytes, which can seek; or a folder of
            pictures, which are the frames in the natural order of their names. Animated GIF, PNG and WebP are videos.
        backend: ``"pyav"``, ``"torchcodec"``, or ``"auto"``: torchcodec where it is installed and loads, else PyAV.

    Returns:
        The reader, a context manager.

    Raises:
        TypeError: ``source`` is none of these.
        ConfigError: ``backend`` is none of these.
        VideoError: There is no such file, or it holds no video that can be decoded. The message begins with its name.
        ImportError: Neither decoder, or not the one that was named, is installed.
    """
    require_choice("backend", backend, BACKENDS)
    name, content = _content(source)
    if isinstance(content, Path) and content.is_dir():
        from aim_adapters.video.decoding.pictures import FolderReader

        return FolderReader(content, name)
    head = _head(name, content)
    if head.startswith(_PICTURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        from aim_adapters.video.decoding.pictures import AnimationReader

        return AnimationReader(content, name)
    if backend == "torchcodec" or (backend == "auto" and torchcodec_loads()):
        from aim_adapters.video.decoding.torchcodec import TorchcodecReader

        return TorchcodecReader(content, name)
    from aim_adapters.video.decoding.pyav import PyAVReader

    return PyAVReader(content, name)


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
        if _PROTOCOL.match(text) and not os.path.lexists(text):
            raise VideoError(f"{text}: is an address, not a path; download it first, or pass its bytes")
        return text, Path(text)
    if callable(getattr(source, "read", None)) and callable(getattr(source, "seek", None)):
        name = getattr(source, "name", None)
        return (name if isinstance(name, str) else f"<{type(source).__name__}>"), source
    expected = "a path, bytes, a file object open for reading bytes or a folder of pictures"
    raise TypeError(f"source must be {expected}, got {shown(source)}")


def _head(name: str, content: Path | bytes | IO[bytes]) -> bytes:
    """Return the first bytes of a file."""
    try:
        if isinstance(content, Path):
            if not content.is_file() and content.exists():
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
