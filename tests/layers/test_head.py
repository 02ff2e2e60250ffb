"""A clip's features are the mean over its frames; the new classifier starts as the reference's."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aim_adapters.layers.head import average_frames, new_classifier


def test_new_classifier_is_drawn_narrowly_around_zero() -> None:
    torch.manual_seed(0)
    layer = new_classifier(512, 400)
    assert layer.weight.shape == (400, 512)
    assert abs(layer.weight.std().item() - 0.01) < 1e-4  # five sigma of the estimate: 0.8e-4
    assert abs(layer.weight.mean().item()) < 1.2e-4
    assert layer.weight.abs().max() > 0.04  # normal, not uniform
    assert not layer.bias.any()


def test_new_classifier_is_made_in_place() -> None:
    layer = new_classifier(4, 3, device=torch.device("meta"), dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}


@given(st.integers(0, 3), st.integers(1, 5), st.lists(st.integers(1, 3), max_size=3))
@settings(deadline=None, max_examples=40)
def test_average_is_the_mean_over_each_clip(clips: int, frames: int, rest: list[int]) -> None:
    x = torch.randn(clips, frames, *rest, dtype=torch.float64)
    out = average_frames(x.flatten(0, 1), frames)
    assert out.shape == (clips, *rest)
    for clip in range(clips):
        torch.testing.assert_close(out[clip], sum(x[clip]) / frames)  # type: ignore[operator]


def test_average_spreads_the_gradient_over_a_clip_only() -> None:
    x = torch.randn(6, 2, requires_grad=True)
    average_frames(x, 3)[0].sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([1 / 3] * 3 + [0.0] * 3)[:, None].expand(6, 2))
