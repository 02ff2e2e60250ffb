"""Videos decoded by torchcodec, where it is installed and finds FFmpeg."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from aim_adapters.errors import VideoError
from aim_adapters.video.decoding.reader import VideoReader, require_size

# How a file begins: the boxes of MP4 and QuickTime, EBML.
_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"pnot"})
_MATROSKA = b"\x1a\x45\xdf\xa3"


class TorchcodecReader(VideoReader):
    """A video that torchcodec decodes.

    Args:
        content: Path, bytes or file object.
        name: Name for errors.
        threads: Threads that decode it; 0 lets FFmpeg choose.
        head: Its first bytes.

    Raises:
        ImportError: torchcodec is not installed, or finds no FFmpeg.
        VideoError: There is no video, or it cannot be decoded.
    """

    def __init__(self, content: Path | bytes | IO[bytes], name: str, *, threads: int, head: bytes) -> None:
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, OSError, RuntimeError) as error:
            raise ImportError(
                "backend='torchcodec' needs torchcodec and an FFmpeg that it was built for; install both, or leave "
                f"backend='auto': {error!s:.300}"
            ) from error
        super().__init__(name)
        # torchcodec has no list of demuxers to keep FFmpeg from following a playlist to other files and addresses.
        if not (head[4:8] in _BOXES or head.startswith(_MATROSKA) or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")):
            raise VideoError(
                f"{name}: is no MP4, QuickTime, Matroska, WebM or AVI file, so torchcodec does not get it; "
                "backend='pyav' reads more"
            )
        self._content, self._make, self._threads = content, VideoDecoder, threads
        self._decoder: Any = None
        self._size: tuple[int, int] | None = None
        try:
            decoder = self._open(None)
            self._count = len(decoder)
            self.codec = str(decoder.metadata.codec)
            self.fps = float(decoder.metadata.average_fps or math.nan)
            first = decoder[0] if self._count else None
        except (IndexError, OSError, RuntimeError, ValueError) as error:
            raise VideoError(f"{name}: cannot be read as a video: {error!s:.300}") from error
        if first is None:
            raise VideoError(f"{name}: has no frame that can be decoded ({self.codec})")
        self.frame_size = require_size(name, first.shape[0], first.shape[1])

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Let the file go."""
        self._decoder = self._content = None  # type: ignore[assignment]

    def _open(self, size: tuple[int, int] | None) -> Any:
        source: Any = self._content
        if isinstance(source, Path):
            source = "file:" + str(source)  # not an address, whatever the name
        elif not isinstance(source, bytes):
            source.seek(0)
        options: dict[str, Any] = {"dimension_order": "NHWC", "num_ffmpeg_threads": self._threads}
        if size is not None:
            from torchvision.transforms.v2 import Resize

            options["transforms"] = [Resize(size)]
        self._decoder, self._size = self._make(source, **options), size
        return self._decoder

    def _read(self, indices: Sequence[int], size: tuple[int, int]) -> Sequence[Tensor]:
        if self._content is None:
            raise VideoError(f"{self.name}: is closed")
        wanted = None if size == self.frame_size else size
        try:
            decoder = self._decoder if wanted == self._size else self._open(wanted)
            frames: Tensor = decoder.get_frames_at(list(indices)).data  # [T, H, W, 3]
        except (IndexError, OSError, RuntimeError, ValueError) as error:
            raise VideoError(f"{self.name}: cannot be decoded: {error!s:.300}") from error
        return list(torch.unbind(frames))
