"""The reference is PyTorch's own depthwise convolution along time, for any shape and number of taps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from aim_adapters.ops.temporal_conv import temporal_conv_gelu


def convolved(h: Tensor, weight: Tensor, bias: Tensor, frames: int) -> Tensor:
    """Return the same by `torch.nn.functional.conv1d` over one sequence for each clip and token."""
    clips = h.unflatten(0, (-1, frames)).movedim(1, -1)  # [B, ..., W, T]
    sequences = clips.reshape(-1, *clips.shape[-2:])  # [B*N, W, T]
    out = F.conv1d(sequences, weight.unsqueeze(1), bias, padding=weight.shape[1] // 2, groups=len(weight))
    return F.gelu(out).reshape(clips.shape).movedim(-1, 1).flatten(0, 1)


@pytest.mark.parametrize("tokens", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("kernel", [1, 3, 5, 9])
@pytest.mark.parametrize("frames", [1, 2, 3, 6])
def test_equals_a_depthwise_convolution(frames: int, kernel: int, tokens: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    h, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((2 * frames, *tokens, 4), (4, kernel), (4,))
    )
    results = []
    for out in (
        temporal_conv_gelu(h, weight, bias, num_frames=frames, implementation="eager"),
        convolved(h, weight, bias, frames),
    ):
        results.append([out, *torch.autograd.grad(out.sin().sum(), (h, weight, bias))])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # PyTorch's own use of it
def test_writes_nothing_in_place_and_follows_function_transforms() -> None:
    frames, every = 3, (0, 1, 2)
    tensors = tuple(torch.randn(each, dtype=torch.float64) for each in ((6, 2, 2), (2, 5), (2,)))

    def call(*tensors: Tensor) -> Tensor:
        return temporal_conv_gelu(*tensors, num_frames=frames, implementation="eager")

    traced = make_fx(call)(*tensors)
    operators = [node.target for node in traced.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    assert operators
    assert not any(operator._schema.is_mutable for operator in operators)
    clips = tensors[0].unflatten(0, (2, frames))
    torch.testing.assert_close(torch.vmap(call, (0, None, None))(clips, *tensors[1:]).flatten(0, 1), call(*tensors))
    expected = torch.func.jacrev(lambda *x: convolved(*x, frames), every)(*tensors)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(call, every)(*tensors), expected)


@pytest.mark.parametrize("shape", [(0, 3, 6), (8, 0, 6), (8, 0)], ids=str)
def test_nothing_gives_nothing(shape: tuple[int, ...]) -> None:
    h, weight, bias = (torch.randn(each, requires_grad=True) for each in (shape, (shape[-1], 3), shape[-1:]))
    out = temporal_conv_gelu(h, weight, bias, num_frames=4)
    assert out.shape == shape
    assert not any(x.any() for x in torch.autograd.grad(out.sum(), (h, weight, bias)))


def test_has_second_derivatives() -> None:
    h, weight, bias = (torch.randn(each, dtype=torch.float64).requires_grad_() for each in ((6, 2, 2), (2, 3), (2,)))

    def call(*tensors: Tensor) -> Tensor:
        return temporal_conv_gelu(*tensors, num_frames=3, implementation="eager")

    torch.autograd.gradcheck(call, (h, weight, bias))
    torch.autograd.gradgradcheck(call, (h, weight, bias))
