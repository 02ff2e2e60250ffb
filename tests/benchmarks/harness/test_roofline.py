"""Hold ceilings to the time that they take to find."""

from __future__ import annotations

import time

from benchmarks.harness import Effort, WallClock, ceilings

EFFORT = Effort(rounds=2, batch=1e-6, calls=2, copy_bytes=(2**12,), side=16, warmup=0.0)


def test_ceilings_are_rates() -> None:
    start = time.perf_counter()
    got = ceilings(WallClock(), "cpu", EFFORT)
    took = time.perf_counter() - start
    # Forty batches of five copies, and the products, took no longer than all of it.
    assert got["copy_bytes_per_second"] > 2 * 2**12 * 200 / took
    assert got["bf16_flop_per_second"] > 2 * 16**3 * 10 / took
