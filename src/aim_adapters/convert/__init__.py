"""Checkpoints of the AIM reference implementation: run as they are, or written in this package's format."""

from aim_adapters.convert.inspection import inspect_official_checkpoint
from aim_adapters.convert.official import convert_official_checkpoint, load_official_checkpoint

__all__ = ["convert_official_checkpoint", "inspect_official_checkpoint", "load_official_checkpoint"]
