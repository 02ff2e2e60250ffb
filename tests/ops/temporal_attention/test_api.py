"""Arguments are checked, the implementation is chosen by a table, and a name asked for is the one that runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from aim_adapters.errors import AIMError, ConfigError, InputError, UnsupportedKernelError
from aim_adapters.ops.choice import Choice
from aim_adapters.ops.temporal_attention import (
    Case,
    api,
    choose,
    reference,
    sdpa,
    temporal_attention,
    temporal_attention_packed,
    temporal_attention_weights,
)
from tests.ops.temporal_attention.cases import Sizes, inputs

SIZES = Sizes(clips=2, frames=4, tokens=3, heads=4, groups=2, dim=6)


def qkv(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [x.detach() for x in inputs(SIZES, dtype=dtype)[1]]


# The table


GPU = Case("cuda", torch.bfloat16, head_dim=64, num_frames=8, missing=None)


@pytest.mark.parametrize(
    ("case", "implementation", "reason"),
    [
        (GPU, "triton", "reads and writes what the projections do"),
        (GPU._replace(dtype=torch.float16), "triton", "reads and writes"),
        (GPU._replace(dtype=torch.float32), "triton", "reads and writes"),
        (GPU._replace(num_frames=1), "triton", "reads and writes"),
        (GPU._replace(num_frames=128, head_dim=128), "triton", "reads and writes"),
        (GPU._replace(num_frames=128, head_dim=128, shared_memory=166_912), "sdpa", "192 KiB of shared memory, this"),
        (GPU._replace(num_frames=128, head_dim=64, shared_memory=166_912), "triton", "reads and writes"),  # A100
        (GPU._replace(num_frames=64, head_dim=128, shared_memory=101_376), "triton", "reads and writes"),  # Ada
        (
            GPU._replace(num_frames=128, dtype=torch.float32, shared_memory=232_448),
            "sdpa",
            "device has 227 KiB",
        ),  # H200
        (GPU._replace(num_frames=64, dtype=torch.float32, shared_memory=101_376), "triton", "reads and writes"),
        (GPU._replace(num_frames=128, head_dim=64, shared_memory=101_376), "sdpa", "takes 128 KiB of shared memory"),
        (GPU._replace(num_frames=128, head_dim=16, shared_memory=101_376, biased=True), "triton", "reads and writes"),
        # B200 with Triton before 3.8
        (
            GPU._replace(num_frames=65, biased=True, crowded=True),
            "sdpa",
            "65 frames of torch.bfloat16 takes more tensor",
        ),
        (GPU._replace(num_frames=64, biased=True, crowded=True), "triton", "reads and writes"),
        (
            GPU._replace(num_frames=33, dtype=torch.float32, biased=True, crowded=True),
            "sdpa",
            "takes more tensor memory",
        ),
        (GPU._replace(num_frames=32, dtype=torch.float32, biased=True, crowded=True), "triton", "reads and writes"),
        (GPU._replace(num_frames=128, crowded=True), "triton", "reads and writes"),
        (GPU._replace(num_frames=129), "sdpa", "up to 128 frames, got 129"),
        (GPU._replace(head_dim=129), "sdpa", "heads up to 128 wide, got 129"),
        (GPU._replace(dtype=torch.float64), "sdpa", "got torch.float64"),
        (GPU._replace(missing="Triton is not installed"), "sdpa", "Triton is not installed"),
        (GPU._replace(exporting=True), "sdpa", "an exported model must run without this package"),
        (GPU._replace(device="xpu"), "sdpa", "Triton only interprets its kernels on this device"),
        (GPU._replace(device="cpu"), "eager", "as fast as SDPA on a CPU"),
        (GPU._replace(device="cpu", missing="Triton does not run on a CPU"), "eager", "as fast as SDPA on a CPU"),
        (GPU._replace(device="cpu", exporting=True), "eager", "as fast as SDPA on a CPU"),
    ],
)
def test_table(case: Case, implementation: str, reason: str) -> None:
    choice = choose("auto", case)
    assert choice.implementation == implementation
    assert reason in choice.reason
    for name in ("sdpa", "eager"):
        assert choose(name, case) == Choice(name, "asked for by name")
    fits = choice.implementation == "triton" or case.exporting or (case.device != "cuda" and case.missing is None)
    if fits:
        assert choose("triton", case) == Choice("triton", "asked for by name")
    else:
        with pytest.raises(UnsupportedKernelError, match=case.missing or reason):
            choose("triton", case)


def test_while_only_the_name_is_known() -> None:
    assert choose("auto") == Choice("auto", "chosen at each call")
    assert choose("sdpa") == Choice("sdpa", "asked for by name")


@pytest.mark.parametrize("call", [choose, lambda name: temporal_attention(*qkv(), num_frames=4, implementation=name)])
def test_a_name_never_falls_back(call: Any, no_triton: None) -> None:
    with pytest.raises(
        UnsupportedKernelError,
        match=r"attention='triton' was asked for, but .*; use 'auto', which falls back, 'sdpa' or",
    ):
        call("triton")
    with pytest.raises(ConfigError, match=r"'auto', 'triton', 'sdpa' or 'eager', got 'flash'"):
        call("flash")


@pytest.mark.parametrize("implementation", ["auto", "sdpa", "eager"])
def test_packed_form_is_the_same(implementation: str) -> None:
    packed = torch.randn(8, 3, 3, 2, 6, dtype=torch.float64)
    out = temporal_attention_packed(packed, num_frames=4, scale=0.3, implementation=implementation)
    expected = temporal_attention(*packed.unbind(2), num_frames=4, scale=0.3, implementation=implementation)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("shape", [(8, 3, 2, 6), (8, 3, 2, 2, 6), (8, 3, 3, 2, 6, 1)])
def test_what_is_not_packed_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="a packed projection is"):
        temporal_attention_packed(torch.randn(shape), num_frames=4)


@pytest.mark.parametrize(
    ("requested", "runs", "rests"),
    [("auto", reference, sdpa), ("sdpa", sdpa, reference), ("eager", reference, sdpa)],
)
def test_the_chosen_implementation_is_the_one_that_runs(
    requested: str, runs: Any, rests: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = runs.temporal_attention(*qkv(), num_frames=4, scale=6**-0.5, bias=None)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the other implementation ran")

    name = {sdpa: "sdpa", reference: "eager"}[rests]
    monkeypatch.setitem(api._PLAIN, name, fail)
    assert torch.equal(temporal_attention(*qkv(), num_frames=4, implementation=requested), expected)


# Values


@pytest.mark.parametrize("implementation", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize("scale", [None, 0.2])
@pytest.mark.parametrize("biased", [False, True])
def test_arguments_reach_the_implementation(implementation: str, scale: float | None, biased: bool) -> None:
    q, k, v = qkv()
    bias = torch.randn(4, 4, 4, dtype=torch.float64) if biased else None
    out = temporal_attention(q, k, v, num_frames=4, scale=scale, bias=bias, implementation=implementation)
    used = 6**-0.5 if scale is None else scale
    expected = reference.temporal_attention(q, k, v, num_frames=4, scale=used, bias=bias)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    assert out.dtype == q.dtype


@pytest.mark.parametrize("implementation", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize(("clips", "tokens"), [(0, 3), (2, 0)])
def test_nothing_attends_to_nothing(implementation: str, clips: int, tokens: int) -> None:
    packed = zeros(clips * 4, tokens, 3, 2, 6).requires_grad_()
    out = temporal_attention_packed(packed, num_frames=4, implementation=implementation)
    assert out.shape == (clips * 4, tokens, 2, 6)
    out.sum().backward()
    assert packed.grad is not None


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_frames_see_their_own_clip_and_token_only(implementation: str) -> None:
    q, k, v = (x.requires_grad_() for x in qkv())
    out = temporal_attention(q, k, v, num_frames=4, implementation=implementation)
    out[5, 1, 0].sum().backward()  # clip 1, frame 1, token 1, head 0 of key/value head 0
    for x in (k, v):
        assert x.grad is not None
        expected = torch.zeros_like(x, dtype=torch.bool)
        expected[4:8, 1, 0] = True
        assert torch.equal(x.grad != 0, expected)


@pytest.mark.parametrize("scale", [None, 0.2])
@pytest.mark.parametrize("biased", [False, True])
def test_weights_are_those_of_the_oracle(scale: float | None, biased: bool) -> None:
    q, k, _ = qkv()
    bias = torch.randn(4, 4, 4, dtype=torch.float64) if biased else None
    weights = temporal_attention_weights(q, k, num_frames=4, scale=scale, bias=bias)
    used = 6**-0.5 if scale is None else scale
    assert torch.equal(weights, reference.attention_weights(q, k, num_frames=4, scale=used, bias=bias))
    assert weights.shape == (2, 3, 4, 4, 4)


# Validation


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": zeros(8, 3, 24)}, r"takes q \[B\*T, N, H, d\] and k, v \[B\*T, N, G, d\], got q \(8, 3, 24\)"),
        ({"k": zeros(8, 3, 12)}, r"k, v \[B\*T, N, G, d\], got .*k \(8, 3, 12\)"),
        ({"v": zeros(8, 3, 1, 6)}, r"got .*k \(8, 3, 2, 6\), v \(8, 3, 1, 6\)"),
        ({"q": zeros(4, 3, 4, 6)}, r"agree in frames, tokens and head dim.*got q \(4, 3, 4, 6\)"),
        ({"q": zeros(8, 5, 4, 6)}, r"agree in frames, tokens and head dim.*got q \(8, 5, 4, 6\)"),
        ({"q": zeros(8, 3, 4, 7)}, r"agree in frames, tokens and head dim.*got q \(8, 3, 4, 7\)"),
        ({"q": zeros(8, 3, 3, 6)}, r"q's heads be a multiple of k's, got q \(8, 3, 3, 6\), k \(8, 3, 2, 6\)"),
        ({"q": zeros(8, 3, 1, 6)}, "q's heads be a multiple of k's"),
        ({"k": zeros(8, 3, 0, 6), "v": zeros(8, 3, 0, 6)}, "q's heads be a multiple of k's"),
        ({"k": zeros(8, 3, 2, 6).double()}, "one floating dtype, got torch.float32, torch.float64, torch.float32"),
        ({"v": zeros(8, 3, 2, 6).half()}, "one floating dtype, got torch.float32, torch.float32, torch.float16"),
        (
            {"q": zeros(8, 3, 4, 6).int(), "k": zeros(8, 3, 2, 6).int(), "v": zeros(8, 3, 2, 6).int()},
            "one floating dtype, got torch.int32, torch.int32, torch.int32",
        ),
        ({"v": zeros(8, 3, 2, 6).to("meta")}, "on one device, got cpu, cpu, meta"),
        ({"bias": zeros(4, 4, 4).to("meta")}, "on one device, got cpu, cpu, cpu, meta"),
        ({"num_frames": 3}, r"multiple of num_frames=3, got q \(8, 3, 4, 6\)"),
        ({"num_frames": 0}, "multiple of num_frames=0"),
        ({"num_frames": -4}, "multiple of num_frames=-4"),
        ({"bias": zeros(2, 4, 4)}, r"bias must be \[H, T, T\] = \[4, 4, 4\], got \(2, 4, 4\)"),
        ({"bias": zeros(4, 8, 8)}, r"bias must be .*got \(4, 8, 8\)"),
        ({"bias": zeros(4, 4)}, r"bias must be .*got \(4, 4\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"q": zeros(8, 3, 4, 6), "k": zeros(8, 3, 2, 6), "v": zeros(8, 3, 2, 6), "num_frames": 4}
    temporal_attention(**call)
    with pytest.raises(InputError, match=message) as caught:
        temporal_attention(**{**call, **changed})
    assert isinstance(caught.value, AIMError)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": zeros(8, 3, 2, 7)}, "head dim"),
        ({"num_frames": 5}, "num_frames=5"),
        ({"bias": zeros(4, 3, 3)}, "bias"),
        ({"q": zeros(8, 3, 4, 6).double()}, "floating dtype"),
    ],
)
def test_weights_check_their_arguments_too(changed: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"q": zeros(8, 3, 4, 6), "k": zeros(8, 3, 2, 6), "num_frames": 4}
    temporal_attention_weights(**call)
    with pytest.raises(InputError, match=message):
        temporal_attention_weights(**{**call, **changed})
