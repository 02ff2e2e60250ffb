"""What a device can do at most: the bandwidth of a copy and the rate of a matrix product."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.harness.clocks import Clock


@dataclass(frozen=True)
class Effort:
    """How large and how long everything is when operators are timed.

    Attributes:
        rounds: How many times each peer is timed, in turn with the others.
        batch: Seconds of one time.
        calls: How many calls are timed together to find what one costs the host.
        copy_bytes: Sizes of the copies whose fastest is the ceiling.
        side: Rows and columns of the matrices whose product is the other ceiling.
        warmup: Seconds of products before the ceilings, as clocks rise only under load.
    """

    rounds: int = 10
    batch: float = 5e-3
    calls: int = 200
    copy_bytes: tuple[int, ...] = (2**28, 2**30, 2**32)
    side: int = 8192
    warmup: float = 1.5


def ceilings(clock: Clock, device: str, effort: Effort) -> dict[str, float]:
    """Return the bandwidth of the fastest copy, in bytes per second, and the rate of a matrix product, in FLOP."""
    a, b = (torch.randn(effort.side, effort.side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = clock.prepare(lambda: a @ b)
    until, rates = time.perf_counter() + effort.warmup, []
    while not rates or time.perf_counter() < until:
        rates.append(2 * effort.side**3 / product(10))
    bandwidths = []
    for size in effort.copy_bytes:
        source = torch.zeros(size // 2, device=device, dtype=torch.bfloat16)
        target = torch.empty_like(source)
        for copy in (partial(target.copy_, source), partial(torch.neg, source, out=target)):
            replay = clock.prepare(copy)
            bandwidths += [2 * size / replay(5) for _ in range(20)]
    return {"copy_bytes_per_second": max(bandwidths), "bf16_flop_per_second": max(rates)}
