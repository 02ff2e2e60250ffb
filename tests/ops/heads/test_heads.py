"""Both implementations of queries' and keys' norms and rotation answer to float64 autograd of the plain formulas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aim_adapters.ops.heads import Heads, aten

kernels = pytest.importorskip("aim_adapters.ops.heads.triton")

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
IMPLEMENTATIONS = pytest.mark.parametrize("ops", [aten, kernels], ids=["aten", "triton"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


@dataclass(frozen=True)
class Case:
    """F frames of N tokens, of which N' are rotated; H heads of width d."""

    frames: int = 2
    tokens: int = 5
    rotated: int = 4
    heads: int = 3
    dim: int = 8
    norm: str = ""
    affine: str = "both"
    rotary: str = ""
    per_head: bool = False
    angles: torch.dtype = torch.float32
    apart: bool = True  # sines and cosines side by side in one tensor, as timm has them

    def heads_of(self) -> Heads:
        drawn = [draw(10 + i, self.dim) + (1 if i % 2 == 0 else 0) for i in range(4)]
        q_w, q_b, k_w, k_b = drawn if self.norm and self.affine != "none" else [None] * 4
        if self.norm == "rms" or self.affine == "weight":
            q_b = k_b = None
        sin, cos = None, None
        if self.rotary:
            rows = (self.heads, self.rotated) if self.per_head else (self.rotated,)
            both = torch.cat((draw(20, *rows, self.dim).sin(), draw(21, *rows, self.dim).cos()), -1).to(self.angles)
            sin, cos = both.chunk(2, -1)
            sin, cos = (sin, cos) if self.apart else (sin.contiguous(), cos.contiguous())
        return Heads(self.norm, 1e-5, q_w, q_b, k_w, k_b, self.rotary, sin, cos)


CASES = {
    "interleaved": Case(rotary="interleaved"),
    "halves": Case(rotary="halves"),
    "halves_two_tensors": Case(rotary="halves", apart=False, rotated=3, angles=torch.float16),
    "all_tokens": Case(rotary="interleaved", rotated=5),
    "per_head": Case(rotary="interleaved", per_head=True),
    "per_head_halves": Case(rotary="halves", per_head=True, apart=False),
    "odd_width": Case(rotary="interleaved", dim=22),
    "odd_width_halves": Case(rotary="halves", dim=10, tokens=7, rotated=5),
    "long": Case(frames=3, tokens=70, rotated=65, heads=1, dim=64, rotary="halves"),
    "layer": Case(norm="layer"),
    "rms": Case(norm="rms", dim=6),
    "plain_norm": Case(norm="layer", affine="none"),
    "no_bias": Case(norm="layer", affine="weight"),
    "layer_and_interleaved": Case(norm="layer", rotary="interleaved", dim=12),
    "rms_and_halves_per_head": Case(norm="rms", rotary="halves", per_head=True, dim=20),
    "one_of_all": Case(frames=1, tokens=1, rotated=1, heads=1, dim=2, norm="rms", rotary="interleaved"),
}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def mapped(heads: Heads, to: torch.dtype) -> Heads:
    return Heads(*(each.to(to) if isinstance(each, Tensor) else each for each in heads))


def plain(qkv: Tensor, heads: Heads) -> Tensor:
    """Compute the formula part by part, each operator in the dtype of the projection, as libraries do."""
    q, k, v = qkv.unbind(2)  # [F, N, H, d]
    out = []
    for x, weight, bias in ((q, heads.q_weight, heads.q_bias), (k, heads.k_weight, heads.k_bias)):
        weight, bias = (None if each is None else each.to(x.dtype) for each in (weight, bias))
        if heads.norm == "layer":
            x = F.layer_norm(x, x.shape[-1:], weight, bias, heads.eps)
        elif heads.norm == "rms":
            x = F.rms_norm(x, x.shape[-1:], weight, heads.eps)
        if heads.sin is not None and heads.cos is not None:
            sin, cos = (angles.to(x.dtype).expand(x.shape[2], *angles.shape[-2:]) for angles in (heads.sin, heads.cos))
            first, second = (slice(0, None, 2), slice(1, None, 2))
            if heads.rotary == "halves":
                first, second = slice(None, x.shape[-1] // 2), slice(x.shape[-1] // 2, None)
            y = x.transpose(1, 2).clone()  # [F, H, N, d]
            a, b = (y[:, :, -heads.rotated :, columns].clone() for columns in (first, second))
            y[:, :, -heads.rotated :, first] = a * cos[..., first] - b * sin[..., first]
            y[:, :, -heads.rotated :, second] = b * cos[..., second] + a * sin[..., second]
            x = y.transpose(1, 2)
        out.append(x)
    return torch.stack((*out, v), 2)


def by_autograd(qkv: Tensor, d_out: Tensor, heads: Heads) -> list[Tensor]:
    leaf = qkv.requires_grad_()
    out = plain(leaf, heads)
    return [out.detach(), *torch.autograd.grad(out, leaf, d_out)]


@DTYPES
@IMPLEMENTATIONS
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_output_and_gradient(case: Case, ops: Any, dtype: torch.dtype) -> None:
    shape = (case.frames, case.tokens, 3, case.heads, case.dim)
    qkv, d_out = (draw(seed, *shape).to(dtype) for seed in (1, 2))
    heads = case.heads_of()
    weights = [None if each is None else each.float() for each in heads[2:6]]
    heads = Heads(heads.norm, heads.eps, *weights, *heads[6:])  # the angles lie as they did
    true = by_autograd(qkv.double(), d_out.double(), mapped(heads, torch.float64))
    eager = by_autograd(qkv.clone(), d_out, heads)
    given = qkv.clone()
    out = ops.prepare(given, heads)
    assert (out is given) == (not heads.norm)
    assert not heads.norm or torch.equal(given, qkv)
    assert torch.equal(out[:, :, 2], qkv[:, :, 2])
    d_qkv = d_out.clone()
    ops.prepare_backward(d_qkv, qkv, heads)
    assert torch.equal(d_qkv[:, :, 2], d_out[:, :, 2])
    for got, low, right in zip((out, d_qkv), eager, true, strict=True):
        allowed = 2 * (low.double() - right).norm() + 4 * torch.finfo(dtype).eps * right.norm()
        assert got.dtype == dtype and (got.double() - right).norm() <= allowed


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_float64_is_exact(case: Case) -> None:
    shape = (case.frames, case.tokens, 3, case.heads, case.dim)
    qkv, d_out, heads = draw(1, *shape).cpu(), draw(2, *shape).cpu(), mapped(case.heads_of(), torch.float64)
    heads = Heads(*(each.cpu() if isinstance(each, Tensor) else each for each in heads))
    expected = by_autograd(qkv.clone(), d_out, heads)
    out = aten.prepare(qkv.clone(), heads)
    aten.prepare_backward(d_out, qkv, heads)
    for ours, theirs in zip((out, d_out), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@IMPLEMENTATIONS
def test_keys_have_weights_of_their_own(ops: Any) -> None:
    heads = Heads("layer", 1e-5, *(torch.full((4,), value, device=DEVICE) for value in (1.0, 2.0, 3.0, 4.0)))
    qkv = draw(1, 2, 3, 3, 1, 4).float()
    q, k, _ = ops.prepare(qkv, heads).unbind(2)
    normalized = [F.layer_norm(qkv[:, :, i], (4,)) for i in range(2)]
    torch.testing.assert_close(q, normalized[0] + 2)
    torch.testing.assert_close(k, 3 * normalized[1] + 4)
