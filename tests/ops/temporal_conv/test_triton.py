"""The Triton kernels answer to float64, forward and backward: interpreted on a CPU, compiled on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from aim_adapters.errors import UnsupportedKernelError
from aim_adapters.ops.temporal_conv import reference, temporal_conv_gelu

pytest.importorskip("triton", minversion="3.3")
operators = pytest.importorskip("aim_adapters.ops.temporal_conv.triton")

# A leaf made on one stream and used on another, as capturing a graph needs.
pytestmark = pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match")
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "tokens first", "sliced", "expanded")


@dataclass(frozen=True)
class Sizes:
    """B clips of T frames, tokens of any layout, W features, K taps."""

    clips: int = 2
    frames: int = 4
    tokens: tuple[int, ...] = (3,)
    width: int = 6
    kernel: int = 3


def inputs(sizes: Sizes, dtype: torch.dtype = torch.float32, weights: torch.dtype = torch.float32) -> list[Tensor]:
    """Return h, weight and bias, which require gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((sizes.clips * sizes.frames, *sizes.tokens, sizes.width), (sizes.width, sizes.kernel), (sizes.width,))
    drawn = (torch.randn(shape, generator=generator) for shape in shapes)
    return [x.to(DEVICE, each).requires_grad_() for x, each in zip(drawn, (dtype, weights, weights), strict=True)]


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Return a tensor of the same shape with other strides; if expanded, also with other values."""
    if layout == "tokens first":
        return x.movedim(0, -2).contiguous().movedim(-2, 0)
    if layout == "sliced":
        return torch.stack((x, x), -1)[..., 0]
    return x[:1].expand(x.shape) if layout == "expanded" else x


def run(function: Any, tensors: list[Tensor], d_out: Tensor, frames: int, layout: str) -> list[Tensor]:
    """Return output and gradients."""
    h, weight, bias = tensors
    out = function(laid_out(h, layout), laid_out(weight, layout), bias, num_frames=frames)
    return [out.detach(), *torch.autograd.grad(out, tensors, laid_out(d_out, layout).to(out.dtype))]


def check(sizes: Sizes, dtype: torch.dtype, weights: torch.dtype, layout: str = "contiguous") -> None:
    """Hold output and every gradient to twice the error of the eager op in the same precision, against float64."""
    low = inputs(sizes, dtype, weights)
    exact = [x.detach().double().requires_grad_() for x in low]
    d_out = torch.randn(low[0].shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    ours = run(operators.temporal_conv_gelu, low, d_out, sizes.frames, layout)
    eager = run(reference.temporal_conv_gelu, low, d_out, sizes.frames, layout)
    truth = run(reference.temporal_conv_gelu, exact, d_out, sizes.frames, layout)
    for got, plain, true, like in zip(ours, eager, truth, [low[0], *low], strict=True):
        assert got.dtype == like.dtype
        assert got.shape == true.shape
        size = max(true.norm().item(), 1e-3)
        assert (got.double() - true).norm() <= 2 * (plain.double() - true).norm() + 4 * torch.finfo(dtype).eps * size


SMALL = st.integers(1, 4)
SIZES = st.builds(
    Sizes,
    clips=SMALL,
    frames=st.integers(1, 9),
    tokens=st.lists(SMALL, max_size=3).map(tuple),
    width=st.integers(1, 40),
    kernel=st.sampled_from((1, 3, 5, 7)),
)


@given(SIZES, st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.sampled_from(LAYOUTS))
@settings(deadline=None, max_examples=40 if CUDA else 8)
def test_any_shape_and_strides(sizes: Sizes, dtype: torch.dtype, weights: torch.dtype, layout: str) -> None:
    check(sizes, dtype, weights, layout)


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(clips=1, frames=1, tokens=(), width=1, kernel=3),
        Sizes(clips=3, frames=1, tokens=(7,), width=24),
        Sizes(clips=2, frames=8, tokens=(9,), width=96),
        Sizes(clips=1, frames=2, tokens=(2, 2), width=48, kernel=11),  # more taps than frames
        Sizes(clips=1, frames=6, tokens=(5,), width=65, kernel=5),  # the last tile of features holds one
        Sizes(clips=3, frames=7, tokens=(11,), width=16),  # tiles over the ends of clips
        Sizes(clips=1, frames=3, tokens=(2,), width=8, kernel=31),
        Sizes(clips=1, frames=32, tokens=(1,), width=8, kernel=7),
    ],
    ids=str,
)
def test_sizes_at_the_edges(sizes: Sizes) -> None:
    check(sizes, torch.float32, torch.float32)
    check(sizes, torch.bfloat16, torch.float32)


def test_every_element_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory handed out is full of NaN, so that an element left out shows."""
    empty = torch.empty
    monkeypatch.setattr(operators.torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    for sizes in (Sizes(frames=3, tokens=(11,), width=25), Sizes(frames=2, kernel=7), Sizes(frames=8, width=70)):
        tensors = inputs(sizes)
        out = operators.temporal_conv_gelu(*tensors, num_frames=sizes.frames)
        assert all(torch.isfinite(x).all() for x in (out, *torch.autograd.grad(out.sum(), tensors)))


def test_clips_tokens_and_features_never_mix() -> None:
    h, weight, bias = inputs(Sizes(clips=3, frames=4, tokens=(5,)))
    out = operators.temporal_conv_gelu(h, weight, bias, num_frames=4)
    (d_h,) = torch.autograd.grad(out[4, 2, 1], h)  # the first frame of the second clip
    touched = torch.zeros_like(h, dtype=torch.bool)
    touched[4:6, 2, 1] = True
    assert torch.equal(d_h != 0, touched)


def test_backward_is_deterministic() -> None:
    sizes = Sizes(clips=16 if CUDA else 2, frames=8, tokens=(50 if CUDA else 9,), width=48)
    tensors = inputs(sizes)
    results = []
    for _ in range(10 if CUDA else 2):
        out = operators.temporal_conv_gelu(*tensors, num_frames=8)
        results.append(torch.autograd.grad(out.square().sum(), tensors))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


# PyTorch's own check looks at gradients of tensors that are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_operators_are_registered_in_full(weights: torch.dtype) -> None:
    tensors = inputs(Sizes(clips=1, frames=2, tokens=(2,)), weights=weights)
    ops = torch.ops.aim_adapters
    torch.library.opcheck(ops.temporal_conv_gelu.default, (*tensors, 2))
    tensors = [x.detach() for x in tensors]
    torch.library.opcheck(ops.temporal_conv_gelu_backward.default, (torch.randn_like(tensors[0]), *tensors, 2))


def test_second_derivatives_are_refused() -> None:
    tensors = inputs(Sizes())
    out = operators.temporal_conv_gelu(*tensors, num_frames=4)
    (first,) = torch.autograd.grad(out.sum(), tensors[0], create_graph=True)
    with pytest.raises(UnsupportedKernelError, match=r"no second derivative; choose 'eager'"):
        torch.autograd.grad(first.sum(), tensors[0])


@pytest.mark.parametrize("sizes", [Sizes(clips=0), Sizes(tokens=(0,)), Sizes(width=0)], ids=str)
def test_nothing_gives_nothing(sizes: Sizes) -> None:
    tensors = inputs(sizes)
    out = operators.temporal_conv_gelu(*tensors, num_frames=4)
    assert out.shape == tensors[0].shape
    assert not any(x.any() for x in torch.autograd.grad(out.sum(), tensors))


@pytest.mark.parametrize("wanted", range(3), ids=["h", "weight", "bias"])
def test_any_of_the_inputs_alone_gets_its_gradient(wanted: int) -> None:
    tensors = [x.detach().requires_grad_(i == wanted) for i, x in enumerate(inputs(Sizes()))]
    results = [
        torch.autograd.grad(run(*tensors, num_frames=4).square().sum(), tensors[wanted])[0]
        for run in (operators.temporal_conv_gelu, reference.temporal_conv_gelu)
    ]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_defaults_of_the_caller_do_not_matter() -> None:
    results = []
    for device, dtype in ((DEVICE, torch.float32), ("meta", torch.float64)):
        tensors = inputs(Sizes())
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                out = temporal_conv_gelu(*tensors, num_frames=4, implementation="triton")
                results.append([out, *torch.autograd.grad(out, tensors, out.detach())])
        finally:
            torch.set_default_dtype(torch.float32)
    assert all(torch.equal(got, want) for got, want in zip(*results, strict=True))
    with torch.inference_mode():
        out = temporal_conv_gelu(*inputs(Sizes()), num_frames=4, implementation="triton")
    assert torch.equal(out, results[0][0])


def test_flops_are_those_of_the_sums_over_taps() -> None:
    tensors = inputs(Sizes(clips=2, frames=4, tokens=(2, 3), width=8, kernel=5))
    with FlopCounterMode(display=False) as forward:
        out = operators.temporal_conv_gelu(*tensors, num_frames=4)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    product = 2 * 5 * tensors[0].numel()
    assert (forward.get_total_flops(), backward.get_total_flops()) == (product, 3 * product)
    with FlopCounterMode(display=False) as forward:
        operators.temporal_conv_gelu(*tensors, num_frames=2)
    assert forward.get_total_flops() == 2 * 3 * tensors[0].numel()  # in two frames, three taps can meet one


def test_compiles_without_a_break_for_any_batch() -> None:
    def convolve(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return temporal_conv_gelu(h, weight, bias, num_frames=4, implementation="triton").sin()

    temporal_conv_gelu(*inputs(Sizes()), num_frames=4)  # looks for Triton before anything is traced
    compiled = torch.compile(convolve, fullgraph=True, dynamic=True, backend="inductor" if CUDA else "aot_eager")
    for clips in (2, 3):
        tensors = inputs(Sizes(clips=clips))
        out, expected = compiled(*tensors), convolve(*tensors)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(*(torch.autograd.grad(x.sum(), tensors) for x in (out, expected)))


def test_explicit_choice_never_falls_back() -> None:
    for sizes, dtype, message in (
        (Sizes(kernel=33), torch.float32, "up to 31 taps, got 33"),
        (Sizes(), torch.float64, "got torch.float64"),
    ):
        tensors = inputs(sizes, dtype)
        with pytest.raises(UnsupportedKernelError, match=message):
            temporal_conv_gelu(*tensors, num_frames=4, implementation="triton")
        temporal_conv_gelu(*tensors, num_frames=4)  # auto takes another


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_replays_in_a_cuda_graph() -> None:
    tensors = inputs(Sizes(clips=4, frames=8, tokens=(50,), width=96), torch.bfloat16)

    def step() -> tuple[Tensor, ...]:
        out = temporal_conv_gelu(*tensors, num_frames=8, implementation="triton")
        return (out, *torch.autograd.grad(out.float().square().sum(), tensors))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        tensors[0].copy_(torch.randn_like(tensors[0]))
    graph.replay()
    assert all(torch.equal(got, want) for got, want in zip(captured, step(), strict=True))


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_more_elements_than_32_bits_can_count() -> None:
    h = torch.empty(2 * 64, 90_000, 192, device="cuda", dtype=torch.bfloat16).normal_()  # 2.2e9 elements
    _, weight, bias = inputs(Sizes(width=192))
    out = operators.forward(h, weight, bias, 64)
    part = h[-64:, -2:].contiguous()
    assert torch.equal(out[-64:, -2:], operators.forward(part, weight, bias, 64))
