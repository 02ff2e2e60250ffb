"""Attention outside of autograd, over frames and over tokens: output and gradients are those of the formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aim_adapters.ops.branches import AttentionPlan, WindowTensors, flash_takes, tile
from aim_adapters.ops.branches.attention import _deterministic, attend, attend_backward, lse_shape
from aim_adapters.ops.temporal_attention import reference
from tests.ops.branches.cases import FRAME, SCALE, SHIFT, WINDOW, draw, plain_attend

PROPERTY = settings(deadline=None, max_examples=30)


def plan_of(over: str, heads: int, implementation: str = "eager") -> AttentionPlan:
    return AttentionPlan(over, heads, SCALE, 1e-5, implementation)


def check(
    over: str,
    *,
    clips: int = 2,
    frames: int = 3,
    tokens: int = 4,
    heads: int = 2,
    dim: int = 5,
    biased: bool = False,
    dtype: torch.dtype = torch.float64,
    implementation: str = "eager",
    tolerance: float = 1e-10,
) -> None:
    """Hold output and gradients in a dtype to autograd in float64."""
    plan = plan_of(over, heads, implementation)
    qkv = draw(0, clips * frames, tokens, 3, heads, dim).to(dtype)
    bias = draw(1, heads, frames, frames).to(dtype) if biased else None
    d_o = draw(2, clips * frames, tokens, heads, dim).to(dtype)
    leaves = [x.to(torch.float64, copy=True).requires_grad_() for x in (qkv, bias) if x is not None]
    expected = plain_attend(leaves[0], leaves[1] if biased else None, plan, frames)
    wanted = torch.autograd.grad(expected, leaves, d_o.double())

    o, lse = attend(qkv, bias, plan, frames)
    assert o.shape == expected.shape
    assert o.is_contiguous()
    assert o.dtype == dtype
    assert (lse is None) == (over == "frames")
    d_qkv, again, d_bias = attend_backward(d_o, qkv, bias, None if lse is None else o, lse, plan, frames)
    assert d_qkv.shape == qkv.shape
    assert d_qkv.is_contiguous()
    assert again.is_contiguous()
    found = [o, again, d_qkv] + [d_bias] * biased
    assert (d_bias is not None) == biased
    for ours, theirs in zip(found, [expected, expected, *wanted], strict=True):
        assert ours is not None
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


@given(*[st.integers(1, 4)] * 4, st.integers(1, 9), st.booleans())
@PROPERTY
def test_over_frames(clips: int, frames: int, tokens: int, heads: int, dim: int, biased: bool) -> None:
    check("frames", clips=clips, frames=frames, tokens=tokens, heads=heads, dim=dim, biased=biased)


@given(*[st.integers(1, 4)] * 4, st.integers(1, 9))
@PROPERTY
def test_over_tokens(clips: int, frames: int, tokens: int, heads: int, dim: int) -> None:
    check("tokens", clips=clips, frames=frames, tokens=tokens, heads=heads, dim=dim, implementation="flash")


@pytest.mark.parametrize("shift", [(0, 0), SHIFT, (0, 1)])
@pytest.mark.parametrize("frames", [1, 3])
def test_over_windows(frames: int, shift: tuple[int, int]) -> None:
    plan, tokens = plan_of("windows", 2, "flash"), FRAME[0] * FRAME[1]
    index, mask = tile(*FRAME, WINDOW, shift, torch.device("cpu"))
    windows = WindowTensors(draw(3, 2, 6, 6), mask, index)
    qkv, d_o = draw(0, frames, tokens, 3, 2, 5).requires_grad_(), draw(2, frames, tokens, 2, 5)
    expected = plain_attend(qkv, None, plan, frames, windows)
    (wanted,) = torch.autograd.grad(expected, qkv, d_o)
    with torch.no_grad():
        given = torch.empty(frames, tokens, 2, 8, dtype=torch.float64)[..., :5]
        o, lse = attend(qkv, None, plan, frames, windows=windows, out=given)
        d_qkv, again, d_bias = attend_backward(d_o, qkv, None, o, lse, plan, frames, windows=windows)
    assert o.data_ptr() == given.data_ptr()
    assert again is o
    assert d_bias is None
    assert lse is not None
    assert lse.shape == lse_shape(plan, frames, tokens, index)
    torch.testing.assert_close(o, expected.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(d_qkv, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("implementation", "dtype", "tokens", "tolerance"),
    [("flash", torch.float64, 5, 1e-10), ("triton", torch.float16, 20, 1e-2), ("triton", torch.float16, 70, 1e-2)],
)
def test_a_bias_of_all_tokens(implementation: str, dtype: torch.dtype, tokens: int, tolerance: float) -> None:
    plan, windows = plan_of("tokens", 2, implementation), WindowTensors(draw(3, 2, tokens, tokens))
    qkv, d_o = draw(0, 2, tokens, 3, 2, 16).requires_grad_(), draw(2, 2, tokens, 2, 16)
    expected = plain_attend(qkv, None, plan, 1, windows)
    (wanted,) = torch.autograd.grad(expected, qkv, d_o)
    low = qkv.detach().to(dtype)
    o, lse = attend(low, None, plan, 1, windows=windows)
    assert lse is not None and lse.shape == lse_shape(plan, 2, tokens, None)
    d_qkv, _, _ = attend_backward(d_o.to(dtype), low, None, o, lse, plan, 1, windows=windows)
    for ours, theirs in ((o, expected.detach()), (d_qkv, wanted)):
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("clips", "frames", "tokens"), [(2, 4, 3), (1, 1, 1), (3, 8, 1)])
def test_kernels_over_frames(clips: int, frames: int, tokens: int, biased: bool) -> None:
    sizes = {"clips": clips, "frames": frames, "tokens": tokens, "dim": 8}
    check("frames", **sizes, biased=biased, dtype=torch.float32, implementation="triton", tolerance=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("over", ["frames", "tokens"])
def test_low_precision_errs_no_more_than_twice_what_plain_operators_do(over: str, dtype: torch.dtype) -> None:
    frames, heads = 8, 2
    plan = plan_of(over, heads, "flash" if over == "tokens" else "eager")
    qkv, d_o = draw(0, 2 * frames, 16, 3, heads, 16), draw(2, 2 * frames, 16, heads, 16)
    bias = draw(1, heads, frames, frames) if over == "frames" else None

    def plain(dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in (qkv, bias) if x is not None]
        out = plain_attend(leaves[0], leaves[1] if len(leaves) > 1 else None, plan, frames)
        return [out, *torch.autograd.grad(out, leaves, d_o.to(dtype))]

    low, low_bias = qkv.to(dtype), None if bias is None else bias.to(dtype)
    o, lse = attend(low, low_bias, plan, frames)
    kept = (None, None) if lse is None else (o, lse)
    d_qkv, _, d_bias = attend_backward(d_o.to(dtype), low, low_bias, *kept, plan, frames)
    ours = [o, d_qkv] + ([] if d_bias is None else [d_bias])
    for mine, theirs, exact in zip(ours, plain(dtype), plain(torch.float64), strict=True):
        allowed = 2 * (theirs.double() - exact).norm() + 1e-12
        assert (mine.double() - exact).norm() <= allowed


def test_over_frames_is_the_operator_of_temporal_attention() -> None:
    qkv, bias = draw(0, 8, 3, 3, 2, 5), draw(1, 2, 4, 4)
    o, _ = attend(qkv, bias, plan_of("frames", 2), 4)
    expected = reference.temporal_attention(*qkv.unbind(2), num_frames=4, scale=SCALE, bias=bias)
    torch.testing.assert_close(o, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("over", ["frames", "tokens"])
def test_inputs_are_left_as_they_are(over: str) -> None:
    plan = plan_of(over, 2, "flash" if over == "tokens" else "eager")
    qkv, d_o = draw(0, 8, 3, 3, 2, 5), draw(2, 8, 3, 2, 5)
    bias = draw(1, 2, 4, 4) if over == "frames" else None
    before = [None if x is None else x.clone() for x in (qkv, d_o, bias)]
    o, lse = attend(qkv, bias, plan, 4)
    attend_backward(d_o, qkv, bias, *((None, None) if lse is None else (o, lse)), plan, 4)
    for now, then in zip((qkv, d_o, bias), before, strict=True):
        assert (now is None and then is None) or torch.equal(now, then)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "dtype", "width", "takes"),
    [
        ("cpu", torch.float64, 5, True),
        ("cpu", torch.float32, 300, True),
        ("cpu", torch.bfloat16, 64, True),
        ("cuda", torch.bfloat16, 64, True),
        ("cuda", torch.float16, 256, True),
        ("cuda", torch.float32, 64, False),
        ("cuda", torch.float64, 64, False),
        ("cuda", torch.bfloat16, 20, False),
        ("cuda", torch.bfloat16, 264, False),
        ("mps", torch.float16, 64, False),
    ],
)
def test_what_flash_attention_takes(device: str, dtype: torch.dtype, width: int, takes: bool) -> None:
    assert flash_takes(device, dtype, width) is takes


@pytest.mark.parametrize(("before", "warns"), [(False, False), (True, False), (True, True)])
def test_flash_attention_is_asked_for_one_order_of_sums_and_nothing_else_is(before: bool, warns: bool) -> None:
    def switch() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    torch.use_deterministic_algorithms(before, warn_only=warns)
    try:
        with pytest.raises(ZeroDivisionError), _deterministic():
            assert switch() == (True, warns or not before)
            raise ZeroDivisionError
        assert switch() == (before, warns)
    finally:
        torch.use_deterministic_algorithms(False)
