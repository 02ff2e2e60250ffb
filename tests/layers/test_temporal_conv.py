"""The temporal convolution starts as nothing, and computes what it says, clip by clip, in any layout of tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_adapters.layers import TemporalConv


def formula(conv: TemporalConv, x: Tensor, frames: int) -> Tensor:
    """Convolve each clip by itself, at each place of a frame, by PyTorch's own convolution."""
    hidden = x @ conv.down_proj.weight.T + conv.down_proj.bias
    weight, kernel = conv.conv_weight[:, None], conv.conv_weight.shape[1]
    clips = []
    for clip in hidden.split(frames):
        by_place = clip.flatten(1, -2).permute(1, 2, 0)  # [N, W, T]
        out = F.conv1d(by_place, weight, conv.conv_bias, padding=kernel // 2, groups=len(weight))
        clips.append(out.permute(2, 0, 1).reshape(clip.shape))
    hidden = torch.cat(clips)
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    return hidden @ conv.up_proj.weight.T + conv.up_proj.bias


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("frames", "places"), [(4, (3,)), (2, (2, 3)), (1, (3,))])
def test_computes_the_formula_and_its_gradients(kernel: int, frames: int, places: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    conv = TemporalConv(8, 4, kernel=kernel, dtype=torch.float64)
    nn.init.normal_(conv.up_proj.weight)
    x = torch.randn(2 * frames, *places, 8, dtype=torch.float64, requires_grad=True)
    out, expected = conv(x, num_frames=frames), formula(conv, x, frames)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    weights, inputs = torch.randn_like(out), [x, *conv.parameters()]
    found = torch.autograd.grad((out * weights).sum(), inputs)
    for one, other in zip(found, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_starts_at_zero_and_its_first_step_moves_the_up_projection_only() -> None:
    conv, x = TemporalConv(8, 4, kernel=3), torch.randn(6, 5, 8)
    out = conv(x, num_frames=3)
    assert not out.any()
    (out * torch.randn_like(out)).sum().backward()
    moved = {name for name, p in conv.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"up_proj.weight", "up_proj.bias"}


def test_initialization_is_pytorchs_default_but_for_the_up_projection() -> None:
    torch.manual_seed(7)
    conv = TemporalConv(64, 4096, kernel=3)
    torch.manual_seed(7)
    assert torch.equal(conv.down_proj.weight, nn.Linear(64, 4096).weight)
    default = nn.Conv1d(4096, 4096, 3, groups=4096)
    for ours, theirs in ((conv.conv_weight, default.weight), (conv.conv_bias, default.bias)):
        assert theirs is not None
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.05)
        assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.01)


def test_keys_shapes_and_place() -> None:
    conv = TemporalConv(8, 2, kernel=5, device=torch.device("meta"), dtype=torch.bfloat16)
    assert {name: tuple(p.shape) for name, p in conv.named_parameters()} == {
        "conv_weight": (2, 5), "conv_bias": (2,), "down_proj.weight": (2, 8), "down_proj.bias": (2,),
        "up_proj.weight": (8, 2), "up_proj.bias": (8,),
    }  # fmt: skip
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in conv.parameters())
    assert "kernel=5" in repr(conv)


def test_runs_under_autocast_beside_tokens_of_float32() -> None:
    conv, x = TemporalConv(8, 4, kernel=3), torch.randn(6, 5, 8)
    nn.init.normal_(conv.up_proj.weight)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(x, num_frames=3)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), conv(x, num_frames=3), rtol=0.05, atol=0.05)
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in conv.parameters())
