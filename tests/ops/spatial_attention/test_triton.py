"""The Triton kernels answer to float64, forward and backward: interpreted on a CPU, compiled on a GPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from aim_adapters.errors import UnsupportedKernelError
from aim_adapters.ops.spatial_attention import spatial_attention
from aim_adapters.ops.spatial_attention.tiles import MAX_WINDOW_TOKENS, Tiles, alternatives
from tests.ops.spatial_attention.cases import LAYOUTS, Sizes, added, index_of, projection

triton = pytest.importorskip("triton")
operators = pytest.importorskip("aim_adapters.ops.spatial_attention.triton")

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
# The interpreter multiplies bfloat16 wrongly; compiled, the kernels are for 16 bits.
DTYPES = [torch.float16, torch.bfloat16] if CUDA else [torch.float32, torch.float16]
DTYPE = torch.bfloat16 if CUDA else torch.float32
FRAMES = 16 if CUDA else 2
EAGER = partial(spatial_attention, implementation="eager")


def run(implementation: Any, qkv: Tensor, d_out: Tensor, *extra: Tensor | None) -> list[Tensor]:
    """Return the output and the gradient of the projection; extra are bias, mask and index."""
    qkv = qkv.detach().requires_grad_()
    bias, mask, index = (*extra, None)[:3]
    out = implementation(qkv, scale=qkv.shape[-1] ** -0.5, bias=bias, mask=mask, index=index)
    return [out.detach(), *torch.autograd.grad(out, qkv, d_out.to(out.dtype))]


def launched(forward: Tiles, backward: Tiles) -> Any:
    """Return what runs the kernels with tiles of our choice, and returns output and gradient."""

    def both(
        qkv: Tensor, d_out: Tensor, bias: Tensor | None, mask: Tensor | None, index: Tensor | None
    ) -> list[Tensor]:
        given = (qkv.shape[-1] ** -0.5, bias, mask)
        o, lse = operators.forward(qkv, *given, index=index, tiles=forward)
        return [o, operators.backward(d_out, qkv, o, lse, *given, index=index, tiles=backward)]

    return both


def check(sizes: Sizes, dtype: torch.dtype, layout: str = "packed", tiles: tuple[Tiles, Tiles] | None = None) -> None:
    """Hold output and gradient to twice the error of the eager op in the same precision, against float64."""
    qkv = projection(sizes, layout, dtype=dtype).to(DEVICE)
    extra = [None if x is None else x.to(DEVICE) for x in (*added(sizes), index_of(sizes))]
    d_out = torch.randn(qkv[:, :, 0].shape, generator=torch.Generator().manual_seed(9)).to(DEVICE, dtype)
    truth, plain = (run(EAGER, x, d_out, *extra) for x in (qkv.double(), qkv))
    if tiles is None:
        ours = run(operators.spatial_attention, qkv, d_out, *extra)
    else:
        ours = launched(*tiles)(qkv, d_out, *extra)
    for got, eager, true in zip(ours, plain, truth, strict=True):
        assert (got.dtype, got.shape, got.is_contiguous()) == (dtype, true.shape, True)
        size = max(true.norm().item(), 1e-3)
        assert (got.double() - true).norm() <= 2 * (eager.double() - true).norm() + 4 * torch.finfo(dtype).eps * size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(frames=3, tokens=1),
        Sizes(frames=7, tokens=5, heads=3, dim=8),
        Sizes(frames=6, tokens=17, dim=24, windows=3),
        Sizes(frames=FRAMES * 4, tokens=49, heads=2, dim=32, bias=True, windows=4),
        Sizes(frames=5, tokens=50, dim=64),
        Sizes(frames=1, tokens=64, dim=128, bias=True),
        Sizes(frames=3, tokens=7, heads=1, cut=1),
        Sizes(frames=5, tokens=16, heads=1, dim=24, cut=3),
        Sizes(frames=2 * FRAMES + 1, tokens=49, dim=32, bias=True, windows=2, cut=2),
        Sizes(frames=FRAMES, tokens=65, dim=64, windows=2),
        Sizes(frames=FRAMES, tokens=65, dim=128, bias=True),
        Sizes(frames=FRAMES, tokens=80, heads=1, dim=80),
        Sizes(frames=1, tokens=197, heads=FRAMES, dim=64),
        Sizes(frames=1, tokens=197, heads=1, dim=40, bias=True),
        Sizes(frames=1, tokens=145, heads=1, dim=88, bias=True, windows=1),
        Sizes(frames=1, tokens=257, heads=1, dim=72),
        Sizes(frames=1, tokens=290, heads=1, dim=16, bias=True),
    ],
    ids=str,
)
def test_sizes(sizes: Sizes, dtype: torch.dtype) -> None:
    check(sizes, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tokens", [9, 70])
def test_any_strides(tokens: int, layout: str) -> None:
    check(Sizes(tokens=tokens, bias=True, windows=2, cut=2 if tokens <= MAX_WINDOW_TOKENS else 0), DTYPE, layout)


@pytest.mark.parametrize("tokens", [20, 100])
def test_gradient_of_the_output_may_have_any_strides(tokens: int) -> None:
    qkv = projection(Sizes(tokens=tokens), dtype=DTYPE).to(DEVICE)
    o, lse = operators.forward(qkv, 0.3, None, None)
    d_out = torch.randn(o.shape, dtype=DTYPE, device=DEVICE)
    expected = operators.backward(d_out, qkv, o, lse, 0.3, None, None)
    for order in ((1, 0, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2)):
        inverse = [order.index(axis) for axis in range(4)]
        other = d_out.permute(order).contiguous().permute(inverse)
        assert torch.equal(operators.backward(other, qkv, o, lse, 0.3, None, None), expected)
    spread = torch.ones((), dtype=DTYPE, device=DEVICE).expand(o.shape)
    expected = operators.backward(spread.contiguous(), qkv, o, lse, 0.3, None, None)
    assert torch.equal(operators.backward(spread, qkv, o, lse, 0.3, None, None), expected)


@pytest.mark.parametrize("tokens", [20, 100])
def test_the_output_may_go_into_a_part_of_something_wider(tokens: int) -> None:
    """Of which the rest stays as it is; the backward pass reads it there."""
    sizes = Sizes(
        frames=3,
        tokens=tokens // 4 if tokens <= MAX_WINDOW_TOKENS else tokens,
        cut=4 if tokens <= MAX_WINDOW_TOKENS else 0,
    )
    qkv = projection(sizes, dtype=DTYPE).to(DEVICE)
    index = index_of(sizes)
    index = None if index is None else index.to(DEVICE)
    o, lse = operators.forward(qkv, 0.3, None, None, index=index)
    wide = torch.full((3 * tokens, 2 * 16 + 8), 7.0, dtype=DTYPE, device=DEVICE)
    out = wide[:, :32].view(3, tokens, 2, 16)
    got, _ = operators.forward(qkv, 0.3, None, None, index=index, out=out)
    assert got is out
    assert torch.equal(out, o)
    assert (wide[:, 32:] == 7.0).all()
    gradients = [operators.backward(o, qkv, x, lse, 0.3, None, None, index=index) for x in (o, out)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("plus", [False, True], ids=["plain", "added"])
@pytest.mark.parametrize(("tokens", "dim"), [(40, 16), (100, 16), (150, 80)])
def test_every_alternative_of_the_table(tokens: int, dim: int, plus: bool) -> None:
    count = (
        3 if tokens <= MAX_WINDOW_TOKENS else 1
    )  # of frames, masks and windows; a program goes through some of those alone
    cut = count * (plus and tokens <= MAX_WINDOW_TOKENS)
    sizes = Sizes(frames=count, tokens=tokens, heads=1, dim=dim, bias=plus, windows=count * plus, cut=cut)
    forward, backward = (alternatives(tokens, dim, added=plus, backward=each) for each in (False, True))
    for index in range(max(len(forward), len(backward))):
        check(sizes, DTYPE, tiles=(forward[min(index, len(forward) - 1)], backward[min(index, len(backward) - 1)]))


@pytest.mark.parametrize("tokens", [30, 140, 280])
def test_hidden_pairs_count_for_nothing(tokens: int) -> None:
    """The first two thirds of the keys are hidden from some queries, so that whole pieces are."""
    sizes = Sizes(frames=1, tokens=tokens, heads=1, dim=16)
    qkv = projection(sizes, dtype=DTYPE).to(DEVICE)
    mask = torch.zeros(1, tokens, tokens)
    mask[:, 3:, : 2 * tokens // 3] = -torch.inf
    d_out = torch.randn(1, tokens, 1, 16, generator=torch.Generator().manual_seed(3)).to(DEVICE, DTYPE)
    mask = mask.to(DEVICE)
    ours = run(operators.spatial_attention, qkv, d_out, None, mask)
    for got, want in zip(ours, run(EAGER, qkv.double(), d_out, None, mask), strict=True):
        assert (got - want).norm() <= (2e-2 if CUDA else 1e-5) * want.norm()


def test_bias_and_mask_of_any_precision_and_strides() -> None:
    sizes = Sizes(frames=4, tokens=20, bias=True, windows=2)
    qkv = projection(sizes, dtype=DTYPE).to(DEVICE)
    bias, mask = (x.to(DEVICE) for x in added(sizes) if x is not None)
    bias = bias.to(torch.bfloat16)
    expected = operators.forward(qkv, 0.3, bias.contiguous().float(), mask)[0]
    for dtype in (torch.bfloat16, torch.float64):
        assert torch.equal(operators.forward(qkv, 0.3, bias.to(dtype), mask.to(torch.float16))[0], expected)


def poisoned(make: Any) -> Any:
    def run(*args: Any, **options: Any) -> Tensor:
        made: Tensor = make(*args, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    return run


@pytest.mark.parametrize(("tokens", "cut"), [(11, 0), (11, 3), (64, 0), (70, 0), (290, 0)])
def test_every_element_is_written(tokens: int, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory handed out is full of NaN, so that an element left out, or read too early, shows."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
    sizes = Sizes(frames=3 if tokens <= MAX_WINDOW_TOKENS else 1, tokens=tokens, dim=20, cut=cut)
    qkv, index = projection(sizes, dtype=DTYPE).to(DEVICE), index_of(sizes)
    index = None if index is None else index.to(DEVICE)
    o, lse = operators.forward(qkv, 0.2, None, None, index=index)
    gradient = operators.backward(torch.ones_like(o), qkv, o, lse, 0.2, None, None, index=index)
    assert all(torch.isfinite(x).all() for x in (o, lse, gradient))


@pytest.mark.parametrize("tokens", [33, 70, 290])
def test_nothing_beyond_the_tensors_is_read(tokens: int) -> None:
    """What lies around the inputs is NaN, and so is what the heads' rows leave out."""
    around = torch.full((4, tokens + 2, 3, 3, 24 + 8), torch.nan, dtype=DTYPE, device=DEVICE)
    qkv = around[1:3, 1:-1, :, 1:2, :24]
    qkv.copy_(projection(Sizes(tokens=tokens, heads=1, dim=24), dtype=DTYPE))
    o, lse = operators.forward(qkv, 0.2, None, None)
    d_out = around[1:3, 1:-1, 0, 1:2, :24]
    assert torch.isfinite(o).all()
    assert torch.isfinite(operators.backward(d_out, qkv, o, lse, 0.2, None, None)).all()


@pytest.mark.parametrize("tokens", [9, 70])
def test_frames_and_heads_never_mix(tokens: int) -> None:
    qkv = projection(Sizes(frames=3, tokens=tokens), dtype=DTYPE).to(DEVICE).requires_grad_()
    out = operators.spatial_attention(qkv, scale=0.3, bias=None, mask=None)
    out[1, 3, 1].sum().backward()
    assert qkv.grad is not None
    touched = torch.zeros_like(qkv, dtype=torch.bool)
    touched[1, :, 1:, 1] = True  # keys and values of its own frame and head
    touched[1, 3, 0, 1] = True
    assert not (qkv.grad[~touched] != 0).any()
    assert (qkv.grad[1, :, 2, 1] != 0).all()


def test_log_sum_exp_is_that_of_the_scores() -> None:
    qkv = projection(Sizes(tokens=70), dtype=DTYPE).to(DEVICE)
    q, k, _ = qkv.double().unbind(2)
    expected = torch.einsum("fnhd,fmhd->fhnm", 0.3 * q, k).logsumexp(-1)
    torch.testing.assert_close(operators.forward(qkv, 0.3, None, None)[1], expected.float(), rtol=1e-3, atol=1e-3)
    assert operators.forward(qkv[:, :64], 0.3, None, None)[1].shape == (0,)


@pytest.mark.parametrize("tokens", [20, 80, 280])
def test_backward_is_deterministic(tokens: int) -> None:
    qkv = projection(Sizes(frames=FRAMES, tokens=tokens, heads=1), dtype=DTYPE).to(DEVICE)
    o, lse = operators.forward(qkv, 0.3, None, None)
    first, *others = (operators.backward(o, qkv, o, lse, 0.3, None, None) for _ in range(10 if CUDA else 2))
    assert all(torch.equal(first, other) for other in others)


# PyTorch's own check looks at gradients of tensors that are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(
    "sizes",
    [Sizes(heads=1), Sizes(heads=1, bias=True, windows=2, cut=2), Sizes(tokens=70, heads=1, bias=True, windows=2)],
    ids=str,
)
def test_operators_are_registered_in_full(sizes: Sizes) -> None:
    qkv = projection(sizes, dtype=DTYPE).to(DEVICE)
    extra = [None if x is None else x.to(DEVICE) for x in (*added(sizes), index_of(sizes))]
    ops = torch.ops.aim_adapters
    torch.library.opcheck(ops.spatial_attention.default, (qkv.clone().requires_grad_(), *extra, 0.3))
    o, lse = operators.forward(qkv, 0.3, *extra[:2], index=extra[2])
    torch.library.opcheck(ops.spatial_attention_backward.default, (torch.randn_like(o), qkv, o, lse, *extra, 0.3))


def test_second_derivatives_are_refused() -> None:
    qkv = projection(Sizes(), dtype=DTYPE).to(DEVICE).requires_grad_()
    out = operators.spatial_attention(qkv, scale=0.3, bias=None, mask=None)
    (first,) = torch.autograd.grad(out.sum(), qkv, create_graph=True)
    with pytest.raises(UnsupportedKernelError, match=r"no second derivative; choose 'eager'"):
        torch.autograd.grad(first.sum(), qkv)


def test_larger_windows_by_index_are_refused() -> None:
    sizes = Sizes(tokens=MAX_WINDOW_TOKENS + 1, cut=2)
    with pytest.raises(UnsupportedKernelError, match="windows of up to 64 tokens by index, got 65"):
        operators.forward(projection(sizes, dtype=DTYPE), 0.3, None, None, index=index_of(sizes))


@pytest.mark.parametrize("which", [0, 1])
def test_gradients_of_bias_and_mask_are_refused(which: int) -> None:
    sizes = Sizes(bias=True, windows=2)
    extra = [x.to(DEVICE) for x in added(sizes) if x is not None]
    extra[which].requires_grad_()
    with pytest.raises(UnsupportedKernelError, match="bias and mask no gradient"):
        operators.spatial_attention(
            projection(sizes, dtype=DTYPE).to(DEVICE).requires_grad_(), scale=0.3, bias=extra[0], mask=extra[1]
        )


@pytest.mark.parametrize(("frames", "tokens"), [(0, 3), (2, 0), (0, 100)])
def test_nothing_attends_to_nothing(frames: int, tokens: int) -> None:
    qkv = torch.randn(frames, tokens, 3, 2, 16, device=DEVICE, dtype=DTYPE, requires_grad=True)
    out = operators.spatial_attention(qkv, scale=0.3, bias=None, mask=None)
    assert out.shape == (frames, tokens, 2, 16)
    out.sum().backward()
    assert qkv.grad is not None


@pytest.mark.parametrize("tokens", [3, 70])
def test_frames_and_heads_farther_apart_than_32_bits_can_count(tokens: int) -> None:
    far = 2**30
    storage = torch.empty(3 * far, device=DEVICE, dtype=torch.float16)  # on a CPU, only what is touched takes memory
    near = projection(Sizes(tokens=tokens), dtype=torch.float16).to(DEVICE)
    expected, kept = operators.forward(near, 0.3, None, None)
    expected_gradient = operators.backward(expected, near, expected, kept, 0.3, None, None)
    for strides in ((far, 96, 32, 16, 1), (48 * tokens, 48, 16, far, 1), (32 * tokens, 32, far, 16, 1)):
        qkv = storage.as_strided((2, tokens, 3, 2, 16), strides)
        qkv.copy_(near)
        o, lse = operators.forward(qkv, 0.3, None, None)
        assert torch.equal(o, expected)
        assert torch.equal(operators.backward(o, qkv, o, lse, 0.3, None, None), expected_gradient)


@pytest.mark.parametrize("cut", [0, 3])
def test_flops_are_those_of_the_products(cut: int) -> None:
    sizes = Sizes(frames=2, tokens=7, heads=3, dim=16, cut=cut)
    qkv, index = projection(sizes, dtype=DTYPE).to(DEVICE).requires_grad_(), index_of(sizes)
    index = None if index is None else index.to(DEVICE)
    product = 2 * 2 * max(1, cut) * 3 * 7 * 7 * 16
    with FlopCounterMode(display=False) as forward:
        out = operators.spatial_attention(qkv, scale=0.3, bias=None, mask=None, index=index)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert (forward.get_total_flops(), backward.get_total_flops()) == (2 * product, 5 * product)


@pytest.mark.parametrize("tokens", [5, 70])
def test_compiles_without_a_break_for_any_batch(tokens: int) -> None:
    def attend(qkv: Tensor) -> Tensor:
        return spatial_attention(qkv, implementation="triton").sin()

    dtype = torch.float16
    attend(torch.randn(2, 5, 3, 2, 16, device=DEVICE, dtype=dtype))  # looks for Triton before anything is traced
    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="inductor" if CUDA else "aot_eager")
    for frames in (2, 3):
        qkv = torch.randn(frames, tokens, 3, 2, 16, device=DEVICE, dtype=dtype, requires_grad=True)
        out, expected = compiled(qkv), attend(qkv)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(*(torch.autograd.grad(x.sum(), qkv)[0] for x in (out, expected)))


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("tokens", [50, 197, 577])
def test_replays_in_a_cuda_graph(tokens: int) -> None:
    qkv = torch.randn(8, tokens, 3, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def step() -> tuple[Tensor, Tensor]:
        out = spatial_attention(qkv, implementation="triton")
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


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize(("frames", "tokens"), [(9000, 50), (2300, 197), (800, 577)])
def test_more_elements_than_32_bits_can_count(frames: int, tokens: int) -> None:
    qkv = torch.empty((frames, tokens, 3, 32, 64), device="cuda", dtype=torch.bfloat16).normal_()
    assert qkv.numel() > 2**31
    o, lse = operators.forward(qkv, 0.125, None, None)
    gradient = operators.backward(o, qkv, o, lse, 0.125, None, None)
    last, kept = qkv[-1:], lse[-1:] if lse.numel() else lse
    assert torch.equal(o[-1:], operators.forward(last, 0.125, None, None)[0])
    assert torch.equal(gradient[-1:], operators.backward(o[-1:], last, o[-1:], kept, 0.125, None, None))
