"""The oracle equals attention written out sequence by sequence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aim_adapters.ops.temporal_attention.reference import attention_weights, temporal_attention
from tests.ops.temporal_attention.cases import LAYOUTS, Sizes, inputs, sizes

PROPERTY = settings(deadline=None, max_examples=30)


def naive(
    q: Tensor, k: Tensor, v: Tensor, *, num_frames: int, scale: float, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attend within each clip, token, head and query frame on its own.

    Returns:
        Output ``[B*T, N, H, d]`` and weights ``[B, N, H, T, T]``.
    """
    rows, tokens, heads, _ = q.shape
    clips, group = rows // num_frames, heads // k.shape[2]
    out = torch.empty_like(q)
    weights = q.new_empty(clips, tokens, heads, num_frames, num_frames)
    for b in range(clips):
        frames = range(b * num_frames, (b + 1) * num_frames)
        for n in range(tokens):
            for h in range(heads):
                for s, row in enumerate(frames):
                    scores = torch.stack([scale * (q[row, n, h] * k[t, n, h // group]).sum() for t in frames])
                    if bias is not None:
                        scores = scores + bias[h, s]
                    e = (scores - scores.max()).exp()
                    weights[b, n, h, s] = e / e.sum()
                    out[row, n, h] = sum(w * v[t, n, h // group] for w, t in zip(e / e.sum(), frames, strict=True))
    return out, weights


@given(sizes(), st.sampled_from(LAYOUTS), st.floats(-2, 2), st.booleans())
@PROPERTY
def test_equals_the_naive_loop(sizes: Sizes, layout: str, scale: float, biased: bool) -> None:
    q, k, v = (x.detach() for x in inputs(sizes, layout)[1])
    bias = torch.randn(sizes.heads, sizes.frames, sizes.frames, dtype=torch.float64) if biased else None
    expected, weights = naive(q, k, v, num_frames=sizes.frames, scale=scale, bias=bias)
    out = temporal_attention(q, k, v, num_frames=sizes.frames, scale=scale, bias=bias)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    ours = attention_weights(q, k, num_frames=sizes.frames, scale=scale, bias=bias)
    torch.testing.assert_close(ours, weights, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("biased", [False, True])
def test_gradients_are_those_of_finite_differences(groups: int, biased: bool) -> None:
    sizes = Sizes(clips=2, frames=2, tokens=2, heads=2, groups=groups, dim=2)
    leaves, _ = inputs(sizes)
    bias = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True) if biased else None

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        return temporal_attention(q, k, v, num_frames=2, scale=0.7, bias=bias)

    assert torch.autograd.gradcheck(run, (*leaves, bias))


@given(sizes(), st.booleans())
@PROPERTY
def test_weights_are_a_distribution_over_frames_and_reproduce_the_output(sizes: Sizes, biased: bool) -> None:
    q, k, v = (x.detach() for x in inputs(sizes)[1])
    bias = torch.randn(sizes.heads, sizes.frames, sizes.frames, dtype=torch.float64) if biased else None
    weights = attention_weights(q, k, num_frames=sizes.frames, scale=0.3, bias=bias)
    assert weights.shape == (sizes.clips, sizes.tokens, sizes.heads, sizes.frames, sizes.frames)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    values = v.unflatten(0, (sizes.clips, sizes.frames)).repeat_interleave(sizes.heads // sizes.groups, 3)
    rebuilt = torch.zeros_like(values.expand(-1, -1, -1, sizes.heads, -1))
    for t in range(sizes.frames):  # weight of frame t, for each query frame, times that frame's value
        rebuilt += weights[..., t].permute(0, 3, 1, 2)[..., None] * values[:, t : t + 1]
    out = temporal_attention(q, k, v, num_frames=sizes.frames, scale=0.3, bias=bias)
    torch.testing.assert_close(out, rebuilt.flatten(0, 1), rtol=1e-10, atol=1e-10)


def test_one_frame_returns_its_values() -> None:
    q, k, v = (x.detach() for x in inputs(Sizes(frames=1))[1])
    torch.testing.assert_close(temporal_attention(q, k, v, num_frames=1, scale=9.0, bias=None), v)


def test_bias_alone_decides_where_scores_are_equal() -> None:
    q, k, v = (x.detach() for x in inputs(Sizes(frames=3, tokens=1, clips=1))[1])
    bias = torch.full((2, 3, 3), -torch.inf, dtype=torch.float64)
    bias[0, :, 2] = 0  # head 0: every frame looks at the last one
    bias[1] = torch.eye(3).log()  # head 1: at itself
    out = temporal_attention(q * 0, k, v, num_frames=3, scale=1.0, bias=bias)
    torch.testing.assert_close(out[:, :, 0], v[2:3, :, 0].expand(3, -1, -1))
    torch.testing.assert_close(out[:, :, 1], v[:, :, 1])


def test_low_precision_scores_take_a_float32_bias() -> None:
    q, k, v = (x.detach() for x in inputs(Sizes(), dtype=torch.bfloat16)[1])
    out = temporal_attention(q, k, v, num_frames=3, scale=1.0, bias=torch.zeros(2, 3, 3))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, temporal_attention(q, k, v, num_frames=3, scale=1.0, bias=None))
