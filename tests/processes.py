"""Processes of their own, for tests that several take part in."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

# What takes seconds to import, and is imported once for all of them.
IMPORTED = ["tests.tiny", "torch._dynamo", "torch.distributed.fsdp"]


def start(work: Callable[..., None], args: tuple[Any, ...], nprocs: int) -> None:
    """Run a function in some processes, which are told their number first, and wait for all of them."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    mp.start_processes(work, args, nprocs=nprocs, start_method="forkserver")
