"""Temporal attention through SDPA answers to the oracle in float64, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aim_adapters.ops.temporal_attention import reference, sdpa
from tests.ops.temporal_attention.cases import LAYOUTS, Sizes, inputs, sizes


def run(
    implementation: Any, tensors: list[Tensor], leaves: list[Tensor], bias: Tensor | None, *, num_frames: int
) -> list[Tensor]:
    """Return output and the gradients of a fixed loss by every leaf and the bias."""
    q, k, v = tensors
    out = implementation.temporal_attention(q, k, v, num_frames=num_frames, scale=q.shape[-1] ** -0.5, bias=bias)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    wanted = leaves if bias is None else [*leaves, bias]
    return [out.detach(), *torch.autograd.grad((out * weights.to(out.dtype)).sum(), wanted)]


def new_bias(sizes: Sizes, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    bias = torch.randn(sizes.heads, sizes.frames, sizes.frames, generator=generator, dtype=torch.float64)
    return bias.to(dtype).requires_grad_()


@given(sizes(), st.sampled_from(LAYOUTS), st.booleans())
@settings(deadline=None, max_examples=60)
def test_equals_the_oracle_forward_and_backward(sizes: Sizes, layout: str, biased: bool) -> None:
    leaves, tensors = inputs(sizes, layout)
    bias = new_bias(sizes) if biased else None
    ours, expected = (run(x, tensors, leaves, bias, num_frames=sizes.frames) for x in (sdpa, reference))
    assert ours[0].shape == (sizes.clips * sizes.frames, sizes.tokens, sizes.heads, sizes.dim)
    for got, want in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("layout", ["packed", "transposed"])
@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(clips=2, frames=8, tokens=17, heads=4, groups=4, dim=64),
        Sizes(clips=1, frames=32, tokens=5, heads=3, groups=1, dim=80),
        Sizes(clips=3, frames=7, tokens=3, heads=4, groups=2, dim=33),
    ],
    ids=["vit_b", "long_grouped", "odd"],
)
def test_error_is_at_most_twice_that_of_the_eager_op(
    sizes: Sizes, layout: str, biased: bool, dtype: torch.dtype
) -> None:
    leaves, tensors = inputs(sizes, layout, dtype=dtype)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    as_views = [
        x.as_strided(t.shape, t.stride(), t.storage_offset())
        for x, t in zip(exact * 3 if len(exact) == 1 else exact, tensors, strict=True)
    ]
    bias = new_bias(sizes, dtype) if biased else None
    exact_bias = bias.detach().double().requires_grad_() if bias is not None else None
    truth = run(reference, as_views, exact, exact_bias, num_frames=sizes.frames)
    ours, eager = (run(x, tensors, leaves, bias, num_frames=sizes.frames) for x in (sdpa, reference))
    for got, low, true in zip(ours, eager, truth, strict=True):
        assert got.dtype == dtype
        error, allowed = (got.double() - true).norm(), 2 * (low.double() - true).norm()
        assert error <= allowed


# More sequences than a CUDA grid has rows


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of sequences of every call to SDPA."""
    seen: list[int] = []
    original = sdpa.F.scaled_dot_product_attention

    def counted(q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(q.shape[0])
        return original(q, *args, **kwargs)

    monkeypatch.setattr(sdpa.F, "scaled_dot_product_attention", counted)
    return seen


def test_limit_is_that_of_a_cuda_grid() -> None:
    assert sdpa.MAX_SEQUENCES == 65_535


@pytest.mark.parametrize(
    ("clips", "tokens", "expected"),
    [(1, 65_535, [65_535]), (1, 65_536, [65_535, 1]), (2, 70_001, [65_535, 65_535, 8_932])],
)
def test_more_than_65535_sequences_are_split(clips: int, tokens: int, expected: list[int], calls: list[int]) -> None:
    sizes = Sizes(clips=clips, frames=2, tokens=tokens, heads=1, groups=1, dim=1)
    leaves, tensors = inputs(sizes, "packed")
    ours = run(sdpa, tensors, leaves, None, num_frames=2)
    assert calls == expected
    for got, want in zip(ours, run(reference, tensors, leaves, None, num_frames=2), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@given(sizes(), st.sampled_from(LAYOUTS), st.booleans(), st.integers(1, 7))
@settings(deadline=None, max_examples=40)
def test_split_changes_nothing(sizes: Sizes, layout: str, biased: bool, limit: int) -> None:
    leaves, tensors = inputs(sizes, layout)
    bias = new_bias(sizes) if biased else None
    expected = run(reference, tensors, leaves, bias, num_frames=sizes.frames)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdpa, "MAX_SEQUENCES", limit)
        ours = run(sdpa, tensors, leaves, bias, num_frames=sizes.frames)
    for got, want in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_small_limit_splits_into_chunks_of_it(monkeypatch: pytest.MonkeyPatch, calls: list[int]) -> None:
    monkeypatch.setattr(sdpa, "MAX_SEQUENCES", 5)
    leaves, tensors = inputs(Sizes(clips=3, tokens=4))
    run(sdpa, tensors, leaves, None, num_frames=3)
    assert calls == [5, 5, 2]


def test_bias_in_another_precision_is_taken() -> None:
    _, (q, k, v) = inputs(Sizes(), dtype=torch.bfloat16)
    out = sdpa.temporal_attention(q, k, v, num_frames=3, scale=1.0, bias=new_bias(Sizes(), torch.float32))
    assert out.dtype == torch.bfloat16
