"""The bottleneck adapter starts as nothing, computes what the paper says, and its branches drop by clip."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aim_adapters.layers.adapter import Adapter, drop_path


def awake(adapter: Adapter) -> Adapter:
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    return adapter


def formula(adapter: Adapter, x: Tensor) -> Tensor:
    """Compute Figure 2a from the definition of GELU, x * Phi(x)."""
    hidden = x @ adapter.down_proj.weight.T + adapter.down_proj.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    out = hidden @ adapter.up_proj.weight.T + adapter.up_proj.bias
    return x + out if adapter.skip else out


@pytest.mark.parametrize("skip", [True, False])
def test_starts_as_identity_with_skip_and_as_zero_without(skip: bool) -> None:
    x = torch.randn(2, 3, 8)
    assert torch.equal(Adapter(8, 2, skip=skip)(x), x if skip else torch.zeros_like(x))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 4, 8)])
def test_computes_the_formula_with_exact_gelu(skip: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    adapter = awake(Adapter(8, 3, skip=skip, dtype=torch.float64))
    x = torch.randn(shape, dtype=torch.float64)
    # GELU's tanh approximation is off by about 1e-4
    torch.testing.assert_close(adapter(x), formula(adapter, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("skip", [True, False])
def test_a_linear_adapter_has_no_activation(skip: bool) -> None:
    torch.manual_seed(0)
    adapter = awake(Adapter(8, 3, skip=skip, linear=True, dtype=torch.float64))
    x, one = torch.randn(5, 8, dtype=torch.float64), torch.zeros(1, 8, dtype=torch.float64)
    down, up = adapter.down_proj, adapter.up_proj
    whole = up.weight @ down.weight + torch.eye(8, dtype=torch.float64) * skip  # [D, D]
    torch.testing.assert_close(adapter(x) - adapter(one), x @ whole.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(adapter(one)[0], up(down.bias), rtol=1e-12, atol=1e-12)
    assert "linear=True" in repr(adapter)


@pytest.mark.parametrize("skip", [True, False])
def test_gradients_are_those_of_the_formula(skip: bool) -> None:
    torch.manual_seed(0)
    adapter = awake(Adapter(4, 2, skip=skip, dtype=torch.float64))
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 4, dtype=torch.float64)
    inputs = [x, *adapter.parameters()]
    ours = torch.autograd.grad((adapter(x) * weights).sum(), inputs)
    expected = torch.autograd.grad((formula(adapter, x) * weights).sum(), inputs)
    for got, want in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_first_step_moves_the_up_projection_only() -> None:
    adapter = Adapter(8, 4, skip=False)
    adapter(torch.randn(5, 8)).sum().backward()
    moved = {name for name, p in adapter.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"up_proj.weight", "up_proj.bias"}


def test_initialization_is_pytorchs_default_for_down_and_zero_for_up() -> None:
    torch.manual_seed(7)
    adapter = Adapter(64, 16, skip=True)
    torch.manual_seed(7)
    default = nn.Linear(64, 16)
    assert torch.equal(adapter.down_proj.weight, default.weight)
    assert torch.equal(adapter.down_proj.bias, default.bias)
    assert not adapter.up_proj.weight.any()
    assert not adapter.up_proj.bias.any()


def test_keys_shapes_and_place() -> None:
    adapter = Adapter(8, 2, skip=True, device=torch.device("meta"), dtype=torch.bfloat16)
    assert {name: tuple(p.shape) for name, p in adapter.named_parameters()} == {
        "down_proj.weight": (2, 8),
        "down_proj.bias": (2,),
        "up_proj.weight": (8, 2),
        "up_proj.bias": (8,),
    }
    assert {(p.device.type, p.dtype) for p in adapter.parameters()} == {("meta", torch.bfloat16)}
    assert "skip=True" in repr(adapter)


# Stochastic depth


@given(
    clips=st.integers(0, 6),
    frames=st.integers(1, 4),
    rest=st.lists(st.integers(1, 3), max_size=3),
    rate=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=50)
def test_drops_whole_clips_and_rescales_the_others(
    clips: int, frames: int, rest: list[int], rate: float, seed: int
) -> None:
    torch.manual_seed(seed)
    branch = torch.randn(clips * frames, *rest, dtype=torch.float64)
    out = drop_path(branch, rate=rate, num_frames=frames, training=True)
    assert out.shape == branch.shape
    for clip in range(clips):
        rows = slice(clip * frames, (clip + 1) * frames)
        if out[rows].any():
            torch.testing.assert_close(out[rows], branch[rows] / (1 - rate))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_expectation_is_kept_and_the_rate_is_met(rate: float) -> None:
    torch.manual_seed(0)
    clips = 20_000
    out = drop_path(torch.ones(clips * 2, 1), rate=rate, num_frames=2, training=True).view(clips, 2)
    assert torch.equal(out[:, 0], out[:, 1])
    sigma = math.sqrt(rate * (1 - rate) / clips)
    assert abs((out[:, 0] == 0).float().mean().item() - rate) < 5 * sigma
    assert abs(out.mean().item() - 1) < 5 * sigma / (1 - rate)


def test_clips_are_drawn_independently_of_one_another() -> None:
    torch.manual_seed(0)
    out = drop_path(torch.ones(64 * 4, 2), rate=0.5, num_frames=4, training=True).view(64, -1)
    kept = out[:, 0] != 0
    assert 10 < kept.sum() < 54
    assert (out != 0).all(1).eq(kept).all()


@pytest.mark.parametrize(("rate", "training"), [(0.5, False), (0.0, True), (0.0, False)])
def test_is_the_identity_when_off(rate: float, training: bool) -> None:
    branch = torch.randn(6, 2)
    state = torch.get_rng_state()
    assert drop_path(branch, rate=rate, num_frames=3, training=training) is branch
    assert torch.equal(torch.get_rng_state(), state)


def test_gradient_flows_through_kept_clips_only() -> None:
    torch.manual_seed(0)
    branch = torch.ones(32, 3, requires_grad=True)
    out = drop_path(branch, rate=0.25, num_frames=2, training=True)
    out.sum().backward()
    assert branch.grad is not None
    assert torch.equal(branch.grad, out.detach())  # the branch is 1, so both are the mask
    assert set(branch.grad.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}


def test_keeps_the_dtype() -> None:
    out = drop_path(torch.ones(8, 2, dtype=torch.bfloat16), rate=0.5, num_frames=2, training=True)
    assert out.dtype == torch.bfloat16
