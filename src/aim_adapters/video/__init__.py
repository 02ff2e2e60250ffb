"""Videos: read, sampled, transformed, collected into datasets, classified.

Each name is imported when it is first used, and optional packages where they are needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aim_adapters.errors import VideoError as VideoError
    from aim_adapters.video.decoding import VideoReader as VideoReader
    from aim_adapters.video.decoding import open_video as open_video
    from aim_adapters.video.features import extract_features as extract_features
    from aim_adapters.video.sampling import dense_indices as dense_indices
    from aim_adapters.video.sampling import uniform_indices as uniform_indices

_MODULES = {
    "VideoError": "aim_adapters.errors",
    "VideoReader": "aim_adapters.video.decoding",
    "dense_indices": "aim_adapters.video.sampling",
    "extract_features": "aim_adapters.video.features",
    "open_video": "aim_adapters.video.decoding",
    "uniform_indices": "aim_adapters.video.sampling",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
