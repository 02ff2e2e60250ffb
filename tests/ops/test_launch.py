"""A kernel that was launched once is found again by the facts that Triton compiles by, and only by those."""

from __future__ import annotations

import pytest
import torch

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
triton = pytest.importorskip("triton")

from aim_adapters.ops import launch as launches  # noqa: E402
from aim_adapters.ops.frozen import kernels  # noqa: E402


def add(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    count = x.numel()
    launches.launch(kernels.add_kernel, -(-count // 64), x, other, out, count, BLOCK_ELEMENTS=64, num_warps=1)
    return out


class Launched:
    """Counts launches by Triton itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times, original = 0, launches._launch_by_triton

        def count(*args: object) -> object:
            self.times += 1
            return original(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(launches, "_ready", {})
        monkeypatch.setattr(launches, "_launch_by_triton", count)


@cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_specialization_computes_the_sum(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    launched = Launched(monkeypatch)
    pool = torch.arange(4096, dtype=torch.float32, device="cuda").remainder(7).to(dtype)
    for count in (1, 16, 17, 1000, 1024):
        for offset in (0, 1):  # the second is not aligned
            x, other = pool[offset : offset + count], pool[2048 : 2048 + count]
            for _ in range(2):
                torch.testing.assert_close(add(x, other), x + other)
    assert launched.times == (10 if launches._DIRECT else 20)


@cuda
def test_a_kernel_runs_on_the_current_stream_and_in_graphs() -> None:
    x = torch.ones(256, device="cuda")
    add(x, x)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream):
        out = add(x, x)
    x.fill_(3)
    graph.replay()
    torch.testing.assert_close(out, torch.full_like(x, 6))


@cuda
def test_a_profiler_of_triton_sees_every_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    launched, x = Launched(monkeypatch), torch.ones(16, device="cuda")
    add(x, x)
    monkeypatch.setattr(launches, "_watched", lambda: True)
    add(x, x)
    assert launched.times == 2


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 1023, 1024, 1025])
def test_sizes_are_as_triton_computes_them(number: int) -> None:
    assert launches.next_power_of_2(number) == triton.next_power_of_2(number)
    assert launches.cdiv(number, 4) == triton.cdiv(number, 4)
