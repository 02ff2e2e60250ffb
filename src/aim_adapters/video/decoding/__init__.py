"""Frames of videos, whatever holds them: files, bytes, folders of pictures, animated pictures."""

from aim_adapters.video.decoding.api import BACKENDS, Backend, open_video
from aim_adapters.video.decoding.reader import PICTURE_EXTENSIONS, VideoReader

__all__ = ["BACKENDS", "PICTURE_EXTENSIONS", "Backend", "VideoReader", "open_video"]
