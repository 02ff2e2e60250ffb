"""The temporal embedding is zero at first, and the same for all tokens of a frame."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from aim_adapters.layers.temporal import add_temporal_embedding, new_temporal_embedding


def test_new_embedding_is_a_zero_parameter() -> None:
    embedding = new_temporal_embedding(8, 6, dtype=torch.float64)
    assert isinstance(embedding, nn.Parameter)
    assert embedding.requires_grad
    assert (embedding.shape, embedding.dtype) == ((1, 8, 6), torch.float64)
    assert not embedding.any()
    assert new_temporal_embedding(8, 6, device=torch.device("meta")).device.type == "meta"


@given(st.integers(0, 3), st.integers(1, 5), st.lists(st.integers(1, 4), max_size=2), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_every_token_of_a_frame_gets_its_frames_row(clips: int, frames: int, tokens: list[int], dim: int) -> None:
    x = torch.randn(clips, frames, *tokens, dim, dtype=torch.float64)
    embedding = torch.randn(1, frames, dim, dtype=torch.float64)
    flat = x.flatten(0, 1)
    out = add_temporal_embedding(flat, embedding)
    assert out.shape == flat.shape
    for clip in range(clips):
        for frame in range(frames):
            assert torch.equal(out[clip * frames + frame], x[clip, frame] + embedding[0, frame])


def test_zero_embedding_leaves_tokens_as_they_are() -> None:
    x = torch.randn(6, 5, 4)
    assert torch.equal(add_temporal_embedding(x, new_temporal_embedding(3, 4)), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tokens_keep_their_dtype(dtype: torch.dtype) -> None:
    x, embedding = torch.randn(4, 3, 2).to(dtype), torch.randn(1, 4, 2)
    out = add_temporal_embedding(x, embedding)
    assert out.dtype == dtype
    assert torch.equal(out, x + embedding[0, :, None].to(dtype))


def test_gradient_sums_over_clips_and_tokens() -> None:
    embedding = new_temporal_embedding(2, 3)
    weights = torch.randn(6, 5, 3)
    (add_temporal_embedding(torch.randn(6, 5, 3), embedding) * weights).sum().backward()
    assert embedding.grad is not None
    torch.testing.assert_close(embedding.grad[0], weights.view(3, 2, 5, 3).sum((0, 2)))


def test_accepts_tokens_of_any_strides() -> None:
    x, embedding = torch.randn(5, 6, 4).transpose(0, 1), torch.randn(1, 3, 4)
    assert torch.equal(add_temporal_embedding(x, embedding), add_temporal_embedding(x.contiguous(), embedding))
