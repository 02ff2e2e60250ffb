"""Spatial attention through SDPA answers to the oracle in float64, forward and backward."""

from __future__ import annotations

import pytest
import torch

from aim_adapters.ops.spatial_attention import reference, sdpa
from tests.ops.spatial_attention.cases import LAYOUTS, Sizes, added, projection

SIZES = [
    Sizes(),
    Sizes(tokens=1, bias=True),
    Sizes(frames=6, tokens=7, windows=3),
    Sizes(frames=4, tokens=9, heads=3, dim=5, bias=True, windows=2),
]


def check(sizes: Sizes, layout: str) -> None:
    qkv = projection(sizes, layout).requires_grad_()
    bias, mask = added(sizes, hidden=-torch.inf)
    bias = None if bias is None else bias.requires_grad_()
    leaves = [qkv] if bias is None else [qkv, bias]
    results = []
    for each in (sdpa, reference):
        out = each.spatial_attention(qkv, scale=0.3, bias=bias, mask=mask)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6 if got.dtype == torch.float32 else 1e-9, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_the_oracle(sizes: Sizes, layout: str) -> None:
    check(sizes, layout)


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", SIZES)
def test_a_batch_that_is_split_gives_the_same(sizes: Sizes, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa, "MAX_SEQUENCES", limit)
    check(sizes, "packed")


def test_no_more_sequences_than_a_cuda_grid_has_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = sdpa.F.scaled_dot_product_attention

    def counted(q: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
        calls.append(q.shape[0])
        return original(q, *rest, **options)

    monkeypatch.setattr(sdpa.F, "scaled_dot_product_attention", counted)
    sizes = Sizes(frames=65_536, tokens=1, heads=1, dim=1, windows=4)
    assert sdpa.spatial_attention(projection(sizes), scale=1.0, bias=None, mask=added(sizes)[1]).shape[0] == 65_536
    assert calls == [65_532, 4]
