"""Meters of a GPU's memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch


def held() -> int:
    """Return the bytes allocated now, and count the peak anew."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak() -> int:
    """Return the most bytes that were allocated since the peak is counted."""
    return torch.cuda.max_memory_allocated()


def peak_beyond(run: Callable[[], Any]) -> int:
    """Return the bytes that a call allocates at most beyond what is there before; its result counts."""
    before = held()
    result = run()
    torch.cuda.synchronize()
    del result
    return peak() - before


def forget() -> None:
    """Give free memory back."""
    gc.collect()
    torch.cuda.empty_cache()
