"""Queries and keys as attention reads them: normalized, then rotated by their tokens' places."""

from aim_adapters.ops.heads.api import HeadRows, Heads, head_rows

__all__ = ["HeadRows", "Heads", "head_rows"]
