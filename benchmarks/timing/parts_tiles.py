"""Other tiles of our kernels for the parts of a step: which would be faster?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

from benchmarks.harness import Clock, Effort, alternate, check_errors, reason
from benchmarks.timing.parts_peers import OF_ADAPTERS, Case, Inputs, errors, implementation, run

# Tiles that may be worth a try; those in use are in the library.
ROWS_WARPS = ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (4, 2), (1, 4), (2, 4), (4, 4), (8, 4), (4, 8))
ELEMENTS_WARPS = ((1024, 2), (1024, 4), (2048, 2), (2048, 4), (2048, 8), (4096, 4), (4096, 8), (8192, 8))
TILES_STAGES = ((1, 1), (2, 1), (4, 1), (4, 2), (4, 3), (8, 1), (8, 2), (8, 3), (16, 3))


def tried(case: Case) -> Iterator[tuple[str, AbstractContextManager[Any]]]:
    """Yield the tiles of a part, and what puts each in use."""
    from aim_adapters.ops.bottleneck import triton as bottleneck
    from aim_adapters.ops.frozen import triton as frozen

    yield "in use", nullcontext()
    if case.part in OF_ADAPTERS:
        chosen = bottleneck._options
        for elements, warps in ELEMENTS_WARPS:
            for tiles, stages in TILES_STAGES if case.part == "hidden_backward" else TILES_STAGES[:1]:

                def cut(*tensors: Any, elements: int = elements, warps: int = warps) -> dict[str, Any]:
                    options = chosen(*tensors)
                    rows = max(1, elements // options["BLOCK_UNITS"])
                    return {**options, "BLOCK_ROWS": rows, "num_warps": warps}

                used = mock.patch.multiple(bottleneck, _options=cut, _TILES=tiles, _STAGES=stages)
                yield f"(elements, warps, tiles, stages) = {(elements, warps, tiles, stages)}", used
    elif "layer_norm" in case.part:
        for tile in ROWS_WARPS:
            yield f"(rows, warps) = {tile}", mock.patch.object(frozen, "tile", lambda _, t=tile: t)
    else:
        for elements, warps in ELEMENTS_WARPS:
            used = mock.patch.multiple(frozen, ELEMENTS=elements, WARPS=warps)
            yield f"(elements, warps) = {(elements, warps)}", used


def tune(case: Case, clock: Clock, device: str, *, effort: Effort) -> dict[str, float]:
    """Return the seconds of each tile that a part could be cut by."""
    x = Inputs.of(case, device)
    exact = run(implementation("aten"), x.double())
    replays = {}
    for name, used in tried(case):
        with used:
            try:
                check_errors(errors(run(implementation("triton"), Inputs.of(case, device)), exact), case.low)
                replays[name] = clock.prepare(partial(run, implementation("triton"), x))
            except Exception as error:  # a tile that does not fit is one not to choose
                print(f"  {name}: {reason(error)[:140]}")
    timings = alternate(replays, rounds=effort.rounds, batch=effort.batch)
    return {name: timing.median for name, timing in sorted(timings.items(), key=lambda item: item[1].median)}
