"""Arguments are checked, the implementation is chosen by a table, and a name asked for is the one that runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from aim_adapters.errors import AIMError, ConfigError, InputError, UnsupportedKernelError
from aim_adapters.ops.choice import Choice
from aim_adapters.ops.spatial_attention import Case, api, case_of, choose, reference, sdpa, spatial_attention
from tests.ops.spatial_attention.cases import Sizes, added, index_of, projection

GPU = Case("cuda", torch.bfloat16, head_dim=64, tokens=197, missing=None)
SIZES = Sizes(frames=4, tokens=5, heads=2, dim=6, bias=True, windows=2)


@pytest.mark.parametrize(
    ("case", "implementation", "reason"),
    [
        (GPU, "triton", "reads and writes what the projections do"),
        (GPU._replace(dtype=torch.float16, tokens=1025, head_dim=128, added=True), "triton", "reads and writes"),
        (GPU._replace(shared_memory=101_376, tokens=577, head_dim=128), "triton", "reads and writes"),  # Ada
        (GPU._replace(shared_memory=16_384), "sdpa", "no tile of 197 tokens, 64 wide, fits in the 16 KiB"),
        (GPU._replace(head_dim=129), "sdpa", "heads up to 128 wide, got 129"),
        (GPU._replace(dtype=torch.float32), "sdpa", "got torch.float32"),
        (GPU._replace(missing="Triton is not installed"), "sdpa", "Triton is not installed"),
        (GPU._replace(added=True, trained=True), "sdpa", "bias and mask no gradient, and one of them requires it"),
        (GPU._replace(tokens=64, indexed=True), "triton", "reads and writes"),
        (GPU._replace(tokens=65, indexed=True), "sdpa", "windows of up to 64 tokens by index, got 65"),
        (GPU._replace(exporting=True), "sdpa", "an exported model must run without this package"),
        (GPU._replace(device="cpu"), "sdpa", "Triton only interprets its kernels on this device"),
        (GPU._replace(device="cpu", missing="Triton does not run on a CPU"), "sdpa", "Triton does not run on a CPU"),
    ],
)
def test_table(case: Case, implementation: str, reason: str) -> None:
    choice = choose("auto", case)
    assert choice.implementation == implementation
    assert reason in choice.reason
    for name in ("sdpa", "eager"):
        assert choose(name, case) == Choice(name, "asked for by name")
    if implementation == "triton" or case.exporting or (case.device == "cpu" and case.missing is None):
        assert choose("triton", case) == Choice("triton", "asked for by name")
    else:
        with pytest.raises(UnsupportedKernelError, match=f"asked for, but .*{reason}.*; use 'auto', which falls back"):
            choose("triton", case)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'auto', 'triton', 'sdpa' or 'eager', got 'flash'"):
        choose("flash", GPU)
    with pytest.raises(ConfigError, match="got 'flash'"):
        spatial_attention(projection(SIZES), implementation="flash")


def test_case_says_what_is_here() -> None:
    case = case_of("mps", torch.float16, 64, 197, added=True, trained=True, indexed=True)
    assert case.missing is not None and "need a GPU, got mps" in case.missing
    assert case[1:4] == (torch.float16, 64, 197)
    assert (case.added, case.trained, case.indexed, case.exporting) == (True, True, True, False)


def test_a_name_never_falls_back(no_triton: None) -> None:
    with pytest.raises(UnsupportedKernelError, match="attention='triton' was asked for, but"):
        spatial_attention(projection(SIZES, dtype=torch.float16), implementation="triton")


@pytest.mark.parametrize(
    ("requested", "runs", "rests"),
    [("auto", sdpa, "eager"), ("sdpa", sdpa, "eager"), ("eager", reference, "sdpa")],
)
@pytest.mark.parametrize("scale", [None, 0.2])
def test_the_chosen_implementation_runs_with_its_arguments(
    requested: str, runs: Any, rests: str, scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    qkv, (bias, mask) = projection(SIZES), added(SIZES)
    expected = runs.spatial_attention(qkv, scale=6**-0.5 if scale is None else scale, bias=bias, mask=mask)
    monkeypatch.setitem(api._PLAIN, rests, None)
    out = spatial_attention(qkv, scale=scale, bias=bias, mask=mask, implementation=requested)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("implementation", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize("masked", [False, True])
def test_windows_by_index_are_those_cut_out_and_put_back(implementation: str, masked: bool) -> None:
    sizes = Sizes(frames=2, tokens=4, bias=True, windows=3 * masked, cut=3)
    qkv, (bias, mask), index = projection(sizes).requires_grad_(), added(sizes), index_of(sizes)
    assert index is not None
    out = spatial_attention(qkv, bias=bias, mask=mask, index=index, implementation=implementation)
    expected = torch.full_like(out, torch.nan)
    for window, rows in enumerate(index.long()):
        own = None if mask is None else mask[window : window + 1]
        expected[:, rows] = reference.spatial_attention(qkv[:, rows], scale=16**-0.5, bias=bias, mask=own)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x.square().sum(), qkv)[0] for x in (out, expected)))


@pytest.mark.parametrize("which", [0, 1])
def test_a_bias_or_mask_that_trains_does_without_the_kernels(which: int) -> None:
    extra = added(SIZES)
    assert extra[which] is not None
    trained = extra[which].requires_grad_()
    bias, mask = extra
    spatial_attention(projection(SIZES), bias=bias, mask=mask).sum().backward()
    assert trained.grad is not None
    with pytest.raises(UnsupportedKernelError, match="no gradient, and one of them requires it"):
        spatial_attention(projection(SIZES, dtype=torch.float16), bias=bias, mask=mask, implementation="triton")


@pytest.mark.parametrize("implementation", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize(("frames", "tokens"), [(0, 3), (2, 0)])
def test_nothing_attends_to_nothing(implementation: str, frames: int, tokens: int) -> None:
    qkv = torch.zeros(frames, tokens, 3, 2, 6, requires_grad=True)
    out = spatial_attention(qkv, implementation=implementation)
    assert out.shape == (frames, tokens, 2, 6)
    out.sum().backward()
    assert qkv.grad is not None


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"qkv": zeros(4, 5, 2, 6)}, r"a packed projection is \[F, N, 3, H, d\], got \(4, 5, 2, 6\)"),
        ({"qkv": zeros(4, 5, 2, 2, 6)}, r"got \(4, 5, 2, 2, 6\)"),
        ({"qkv": zeros(4, 5, 3, 0, 6)}, r"got \(4, 5, 3, 0, 6\)"),
        ({"qkv": zeros(4, 5, 3, 2, 6, dtype=torch.int32)}, "is floating point, got torch.int32"),
        ({"bias": zeros(3, 5, 5)}, r"bias must be \[H, N, N\] = \[2, 5, 5\], got \(3, 5, 5\)"),
        ({"bias": zeros(2, 5, 4)}, r"bias must be .*got \(2, 5, 4\)"),
        ({"bias": zeros(5, 5)}, r"bias must be .*got \(5, 5\)"),
        ({"bias": zeros(2, 5, 5, dtype=torch.bool)}, "bias must be floating point .* got torch.bool"),
        ({"mask": zeros(2, 5, 5, device="meta")}, "mask must be .* on cpu as qkv is, got torch.float32 on meta"),
        ({"mask": zeros(2, 4, 5)}, r"mask must be \[W, N, N\] = \[W, 5, 5\], got \(2, 4, 5\)"),
        ({"mask": zeros()}, r"mask must be .*got \(\)"),
        ({"mask": zeros(3, 5, 5)}, "4 windows are no multiple of the 3 that the mask tells apart"),
        ({"mask": zeros(0, 5, 5)}, "no multiple of the 0"),
        ({"index": zeros(1, 5, dtype=torch.int64)}, r"index must be int32 \[W, N\] .* got torch.int64 \(1, 5\) on cpu"),
        ({"index": zeros(5, dtype=torch.int32)}, r"index must be .* got torch.int32 \(5,\)"),
        ({"index": zeros(2, 5, dtype=torch.int32)}, r"index must be .* W \* N = 5 .* got torch.int32 \(2, 5\)"),
        ({"index": zeros(1, 5, dtype=torch.int32, device="meta")}, r"index must be .* on cpu .* on meta"),
        ({"index": zeros(1, 5, dtype=torch.int32)}, r"mask must be \[W, N, N\] = \[1, ...\] .* got \(2, 5, 5\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    call = {"qkv": zeros(4, 5, 3, 2, 6), "bias": zeros(2, 5, 5), "mask": zeros(2, 5, 5)}
    spatial_attention(**call)
    with pytest.raises(InputError, match=message) as caught:
        spatial_attention(**{**call, **changed})
    assert isinstance(caught.value, AIMError)


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_a_plain_implementation_does_not_mind_how_many_tokens_there_are(name: str) -> None:
    """What fits the kernels is no concern of theirs, nor of an exported model."""

    class Attend(torch.nn.Module):
        def forward(self, qkv: Tensor) -> Tensor:
            return spatial_attention(qkv, implementation=name)

    tokens = torch.export.Dim("tokens", min=70, max=900)
    qkv = torch.randn(2, 100, 3, 2, 8, dtype=torch.float16)
    exported = torch.export.export(Attend(), (qkv,), dynamic_shapes=({1: tokens},), strict=False).module()
    longer = torch.randn(2, 300, 3, 2, 8, dtype=torch.float16)
    torch.testing.assert_close(exported(longer), Attend()(longer))
