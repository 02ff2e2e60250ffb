"""The Triton kernels answer to float64, forward and backward: interpreted on a CPU, compiled on a GPU."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import aim_adapters as aim
from aim_adapters.ops.temporal_attention import (
    choose,
    reference,
    temporal_attention,
    temporal_attention_packed,
)
from tests.backbones.cases import loss, scramble, wake
from tests.ops.temporal_attention.cases import LAYOUTS, Sizes, inputs, sizes
from tests.pairwise import pairwise

triton = pytest.importorskip("triton")
operators = pytest.importorskip("aim_adapters.ops.temporal_attention.triton")

pytestmark = [
    # The first call to a library from the thread that runs backward.
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS, but there was no current CUDA context"),
    # A leaf made on one stream and used on another, as capturing a graph needs.
    pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match"),
    # Of inductor itself.
    pytest.mark.filterwarnings("ignore:.*is deprecated. Please switch to `torch.compile`:DeprecationWarning"),
]
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# The interpreter multiplies bfloat16 wrongly.
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * CUDA


def run(implementation: Any, tensors: list[Tensor], leaves: list[Tensor], bias: Tensor | None, frames: int) -> Any:
    """Return output and the gradients of a fixed loss by every leaf and the bias."""
    out = implementation(*tensors, num_frames=frames, scale=tensors[0].shape[-1] ** -0.5, bias=bias)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(out)
    wanted = leaves if bias is None else [*leaves, bias]
    return [out.detach(), *torch.autograd.grad(out, wanted, weights)]


def views(leaves: list[Tensor], tensors: list[Tensor], exact: list[Tensor]) -> list[Tensor]:
    """Return the same views of other leaves."""
    base = exact * 3 if len(exact) == 1 else exact
    return [
        x.as_strided(t.shape, t.stride(), t.storage_offset() - leaf.storage_offset())
        for x, t, leaf in zip(base, tensors, leaves * 3 if len(leaves) == 1 else leaves, strict=True)
    ]


def check(sizes: Sizes, layout: str, dtype: torch.dtype, *, biased: bool) -> None:
    """Hold output and every gradient to twice the error of the eager op in the same precision, against float64."""
    made, tensors = inputs(sizes, layout, dtype=dtype)
    low = [leaf.detach().to(DEVICE).requires_grad_() for leaf in made]
    exact = [leaf.detach().double().requires_grad_() for leaf in low]
    bias = exact_bias = None
    if biased:
        shape = (sizes.frames, sizes.frames, sizes.heads)  # as spread from a table: heads come first by permutation
        bias = torch.randn(shape, generator=torch.Generator().manual_seed(5)).permute(2, 0, 1).to(DEVICE, dtype)
        exact_bias = bias.double().requires_grad_()
        bias.requires_grad_()
    truth = run(reference.temporal_attention, views(made, tensors, exact), exact, exact_bias, sizes.frames)
    ours = run(operators.temporal_attention, views(made, tensors, low), low, bias, sizes.frames)
    eager = run(reference.temporal_attention, views(made, tensors, low), low, bias, sizes.frames)
    for got, plain, true in zip(ours, eager, truth, strict=True):
        assert got.dtype == dtype
        assert got.shape == true.shape
        size = max(true.norm().item(), 1e-3)
        assert (got.double() - true).norm() <= 2 * (plain.double() - true).norm() + 4 * torch.finfo(dtype).eps * size


# The interpreter takes as long for a program as for a hundred times its work, so there are few.
@given(sizes(), st.sampled_from(LAYOUTS), st.booleans(), st.sampled_from(DTYPES))
@settings(deadline=None, max_examples=25 if CUDA else 5)
def test_any_shape_and_strides(sizes: Sizes, layout: str, biased: bool, dtype: torch.dtype) -> None:
    check(sizes if CUDA else replace(sizes, clips=min(sizes.clips, 2)), layout, dtype, biased=biased)


SMALL = [
    Sizes(clips=1, frames=1, tokens=1, heads=1, groups=1, dim=1),
    Sizes(clips=2, frames=3, tokens=4, heads=1, groups=1, dim=5),
    Sizes(clips=1, frames=6, tokens=3, heads=4, groups=2, dim=9),
    Sizes(clips=1, frames=2, tokens=2, heads=3, groups=1, dim=4),
    Sizes(clips=1, frames=5, tokens=9, heads=1, groups=1, dim=8),  # more tokens than a tile holds
]


@pytest.mark.parametrize(("layout", "sizes", "biased", "dtype"), pairwise(LAYOUTS, SMALL, (False, True), DTYPES))
def test_any_strides_at_any_shape(layout: str, sizes: Sizes, biased: bool, dtype: torch.dtype) -> None:
    check(sizes, layout, dtype, biased=biased)


IN_USE = [
    Sizes(clips=1 + CUDA, frames=8, tokens=9, heads=3, groups=3, dim=64),
    Sizes(clips=2, frames=1, tokens=40, heads=1, groups=1, dim=16),
    Sizes(clips=1, frames=16, tokens=7, heads=2, groups=1, dim=80),
    Sizes(clips=1, frames=31, tokens=3, heads=1, groups=1, dim=72),
    Sizes(clips=1, frames=33, tokens=2, heads=2, groups=2, dim=88),
    Sizes(clips=1, frames=64, tokens=2, heads=1, groups=1, dim=32),
    Sizes(clips=1, frames=127, tokens=1, heads=1, groups=1, dim=128),
    Sizes(clips=1, frames=128, tokens=2, heads=1, groups=1, dim=64),
]


@pytest.mark.parametrize(("sizes", "biased", "dtype"), pairwise(IN_USE, (False, True), DTYPES))
def test_sizes_in_use(sizes: Sizes, biased: bool, dtype: torch.dtype) -> None:
    if CUDA and dtype == torch.float32 and sizes.frames > 64:
        pytest.skip("such a tile does not fit in shared memory; the table sends it elsewhere")
    check(sizes, "packed", dtype, biased=biased)


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("frames", [1, 3, 8, 17])
def test_packed_form_is_the_same_and_its_gradient_is_packed(frames: int, biased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = 5 if frames <= 3 else 2
    qkv = torch.randn(2 * frames, tokens, 3, 2, 24, generator=generator).to(DEVICE).requires_grad_()
    bias = torch.randn(2, frames, frames, generator=generator).to(DEVICE).requires_grad_() if biased else None
    wanted = [qkv] if bias is None else [qkv, bias]
    separate = operators.temporal_attention(*qkv.unbind(2), num_frames=frames, scale=0.2, bias=bias)
    packed = operators.temporal_attention_packed(qkv, num_frames=frames, scale=0.2, bias=bias)
    assert torch.equal(packed, separate)
    d_out = torch.randn(packed.shape, generator=generator).to(DEVICE)
    ours, expected = (torch.autograd.grad(out, wanted, d_out) for out in (packed, separate))
    assert all(torch.equal(got, want) for got, want in zip(ours, expected, strict=True))
    assert ours[0].is_contiguous()


def test_every_element_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory handed out is full of NaN, so that an element left out shows."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        out = empty(*args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    monkeypatch.setattr(operators.torch, "empty", poisoned)
    monkeypatch.setattr(
        Tensor, "new_empty", lambda x, *a, **k: poisoned(*a, **{"device": x.device, "dtype": x.dtype, **k})
    )
    for frames, tokens in ((3, 11), (8, 5), (20, 1)):
        qkv = torch.randn(2 * frames, tokens, 3, 2, 20, device=DEVICE, requires_grad=True)
        bias = torch.randn(2, frames, frames, device=DEVICE, requires_grad=True)
        out = operators.temporal_attention_packed(qkv, num_frames=frames, scale=0.2, bias=bias)
        gradients = torch.autograd.grad(out.sum(), [qkv, bias])
        assert all(torch.isfinite(x).all() for x in (out, *gradients))


def test_clips_tokens_and_heads_never_mix() -> None:
    qkv = torch.randn(2 * 4, 9, 3, 2, 16, device=DEVICE, requires_grad=True)
    out = operators.temporal_attention_packed(qkv, num_frames=4, scale=0.3, bias=None)
    out[5, 3, 1].sum().backward()
    assert qkv.grad is not None
    touched = torch.zeros_like(qkv, dtype=torch.bool)
    touched[4:8, 3, 1:, 1] = True  # keys and values of its own clip, token and head
    touched[5, 3, 0, 1] = True
    assert not (qkv.grad[~touched] != 0).any()
    assert (qkv.grad[4:8, 3, 2, 1] != 0).all()


def test_backward_is_deterministic() -> None:
    heads = 4 if CUDA else 2
    qkv = torch.randn(2 * 8, 40 if CUDA else 6, 3, heads, 32, device=DEVICE, requires_grad=True)
    bias = torch.randn(heads, 8, 8, device=DEVICE, requires_grad=True)
    results = []
    for _ in range(2 if not CUDA else 10):
        out = operators.temporal_attention_packed(qkv, num_frames=8, scale=0.3, bias=bias)
        results.append(torch.autograd.grad(out.square().sum(), [qkv, bias]))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


# PyTorch's own check looks at gradients of tensors that are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
def test_operators_are_registered_in_full(biased: bool) -> None:
    qkv = torch.randn(2 * 3, 4, 3, 1, 16, device=DEVICE)  # as few programs as do for what is checked
    bias = torch.randn(1, 3, 3, device=DEVICE, requires_grad=True) if biased else None
    separate = [x.detach().clone().requires_grad_() for x in qkv.unbind(2)]
    ops = torch.ops.aim_adapters
    torch.library.opcheck(ops.temporal_attention.default, (*separate, bias, 3, 0.3))
    torch.library.opcheck(ops.temporal_attention_packed.default, (qkv.requires_grad_(), bias, 3, 0.3))
    qkv, separate, bias = qkv.detach(), [x.detach() for x in separate], None if bias is None else bias.detach()
    d_out = torch.randn_like(separate[0])
    torch.library.opcheck(ops.temporal_attention_backward.default, (d_out, *separate, bias, 3, 0.3))
    torch.library.opcheck(ops.temporal_attention_packed_backward.default, (d_out, qkv, bias, 3, 0.3))


@pytest.mark.parametrize("packed", [False, True])
def test_second_derivatives_are_refused(packed: bool) -> None:
    qkv = torch.randn(4, 2, 3, 2, 16, device=DEVICE, requires_grad=True)
    if packed:
        out = operators.temporal_attention_packed(qkv, num_frames=4, scale=0.3, bias=None)
    else:
        out = operators.temporal_attention(*qkv.unbind(2), num_frames=4, scale=0.3, bias=None)
    (first,) = torch.autograd.grad(out.sum(), qkv, create_graph=True)
    with pytest.raises(aim.UnsupportedKernelError, match=r"no second derivative; choose 'eager'"):
        torch.autograd.grad(first.sum(), qkv)


@pytest.mark.parametrize(("clips", "tokens"), [(0, 3), (2, 0)])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
def test_nothing_attends_to_nothing(clips: int, tokens: int, biased: bool) -> None:
    qkv = torch.randn(clips * 4, tokens, 3, 2, 16, device=DEVICE, requires_grad=True)
    bias = torch.randn(2, 4, 4, device=DEVICE, requires_grad=True) if biased else None
    out = operators.temporal_attention_packed(qkv, num_frames=4, scale=0.3, bias=bias)
    assert out.shape == (clips * 4, tokens, 2, 16)
    out.sum().backward()
    assert bias is None or (bias.grad is not None and not bias.grad.any())


@pytest.mark.parametrize("wanted", ["q", "k", "v", "bias"])
def test_any_of_the_inputs_alone_gets_its_gradient(wanted: str) -> None:
    sizes = Sizes(clips=1, frames=4, tokens=5, heads=4, groups=2, dim=16)
    tensors = dict(zip("qkv", (x.detach().to(DEVICE) for x in inputs(sizes, dtype=torch.float32)[1]), strict=True))
    tensors["bias"] = torch.randn(4, 4, 4, device=DEVICE)
    tensors[wanted].requires_grad_()
    results = [
        torch.autograd.grad(run(**tensors, num_frames=4, scale=0.3).square().sum(), tensors[wanted])[0]
        for run in (operators.temporal_attention, reference.temporal_attention)
    ]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_defaults_of_the_caller_do_not_matter() -> None:
    qkv = torch.randn(8, 5, 3, 2, 16, device=DEVICE)
    bias = torch.randn(2, 4, 4, device=DEVICE)
    results = []
    for device, dtype in ((DEVICE, torch.float32), ("meta", torch.float64)):
        leaves = [x.detach().clone().requires_grad_() for x in (qkv, bias)]
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                out = temporal_attention_packed(leaves[0], num_frames=4, bias=leaves[1], implementation="triton")
                results.append([out, *torch.autograd.grad(out, leaves, out.detach())])
        finally:
            torch.set_default_dtype(torch.float32)
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)
    with torch.inference_mode():
        out = temporal_attention_packed(qkv, num_frames=4, bias=bias, implementation="triton")
    assert torch.equal(out, results[0][0])


def test_heads_farther_apart_than_32_bits_can_count() -> None:
    far = 2**30
    storage = torch.empty(
        2 * far + 64, device=DEVICE, dtype=torch.float16
    )  # on a CPU, only what is touched takes memory
    q = storage.as_strided((2, 1, 3, 16), (16, 16, far, 1))
    q.copy_(torch.randn(q.shape))
    out = operators.temporal_attention(q, q, q, num_frames=2, scale=0.3, bias=None)
    near = q.contiguous()
    assert torch.equal(out, operators.temporal_attention(near, near, near, num_frames=2, scale=0.3, bias=None))


def test_flops_are_those_of_the_products() -> None:
    qkv = torch.randn(2 * 4, 5, 3, 2, 16, device=DEVICE, requires_grad=True)
    product = 2 * 2 * 5 * 2 * 4 * 4 * 16  # of T x T with T x d for every sequence
    for call in (
        lambda: operators.temporal_attention_packed(qkv, num_frames=4, scale=0.3, bias=None),
        lambda: operators.temporal_attention(*qkv.unbind(2), num_frames=4, scale=0.3, bias=None),
    ):
        with FlopCounterMode(display=False) as forward:
            out = call()
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        assert (forward.get_total_flops(), backward.get_total_flops()) == (2 * product, 5 * product)


def test_compiles_without_a_break_for_any_batch() -> None:
    def attend(qkv: Tensor) -> Tensor:
        return temporal_attention_packed(qkv, num_frames=4, implementation="triton").sin()

    choose("auto")  # as wrapping a model does, which looks for Triton before anything is traced
    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="inductor" if CUDA else "aot_eager")
    for clips in (2, 3):
        qkv = torch.randn(clips * 4, 5, 3, 2, 16, device=DEVICE, requires_grad=True)
        out, expected = compiled(qkv), attend(qkv)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(*(torch.autograd.grad(x.sum(), qkv)[0] for x in (out, expected)))


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_replays_in_a_cuda_graph() -> None:
    qkv = torch.randn(4 * 8, 50, 3, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def step() -> tuple[Tensor, Tensor]:
        out = temporal_attention_packed(qkv, num_frames=8, implementation="triton")
        return out, torch.autograd.grad(out.float().square().sum(), qkv)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        qkv.copy_(torch.randn_like(qkv))
    graph.replay()
    assert all(torch.equal(got, want) for got, want in zip(captured, step(), strict=True))


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_more_elements_than_32_bits_can_count() -> None:
    shape = (2 * 64, 3000, 3, 32, 64)  # 2.4e9 elements
    qkv = torch.empty(shape, device="cuda", dtype=torch.bfloat16).normal_()
    out = temporal_attention_packed(qkv, num_frames=64, implementation="triton")
    expected = temporal_attention_packed(qkv[-64:, -2:], num_frames=64, implementation="sdpa")
    torch.testing.assert_close(out[-64:, -2:], expected, rtol=2e-2, atol=2e-2)


# A whole model


def vit() -> nn.Module:
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5)


def swin() -> nn.Module:
    return SwinTransformer(
        img_size=16, patch_size=4, embed_dim=16, depths=(2, 2), num_heads=(1, 2), window_size=2, num_classes=5
    )


@pytest.mark.parametrize("make", [vit, swin])
def test_model_learns_the_same_as_with_the_eager_op(make: Any) -> None:
    torch.manual_seed(0)
    model = wake(aim.wrap_image_model(scramble(make()), 4, temporal_input_adapter=True)).to(DEVICE).train()
    video = torch.randn(2, 4, 3, 16, 16, device=DEVICE)
    results = {}
    for attention in ("triton", "eager"):
        other = copy.deepcopy(model)
        aim.set_attention(other, attention)
        out = other(video)
        gradients = torch.autograd.grad(loss(out), aim.trainable_parameters(other))
        results[attention] = [out.detach(), *gradients]
    for got, want in zip(results["triton"], results["eager"], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_explicit_choice_never_falls_back() -> None:
    for qkv, frames, message in (
        (torch.randn(4, 2, 3, 1, 129), 4, "heads up to 128 wide, got 129"),
        (torch.randn(129, 1, 3, 1, 16), 129, "up to 128 frames, got 129"),
        (torch.randn(4, 2, 3, 1, 16, dtype=torch.float64), 4, "got torch.float64"),
    ):
        on_device = qkv.to(DEVICE)
        with pytest.raises(aim.UnsupportedKernelError, match=message):
            temporal_attention_packed(on_device, num_frames=frames, implementation="triton")
        q, k, v = on_device.unbind(2)
        with pytest.raises(aim.UnsupportedKernelError, match=message):
            temporal_attention(q, k, v, num_frames=frames, implementation="triton")
        temporal_attention_packed(on_device, num_frames=frames)  # auto takes another
