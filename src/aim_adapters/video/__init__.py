"""Functions on whole videos."""

from aim_adapters.video.features import extract_features

__all__ = ["extract_features"]
