"""Queries and keys, normalized and rotated by Triton kernels, for float32, bfloat16 and float16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from aim_adapters.ops.heads import kernels
from aim_adapters.ops.heads.api import Heads
from aim_adapters.ops.launch import launch

_ELEMENTS, _WARPS = 1024, 4  # of a tile of a head's features


def prepare(qkv: Tensor, heads: Heads) -> Tensor:
    """Compute `HeadRows.prepare` by a kernel."""
    out = torch.empty_like(qkv) if heads.norm else qkv
    q_weight, q_bias, k_weight, k_bias = map(_dense, heads[2:6])
    sin, cos, strides = _angles(heads)
    options = _options(qkv, heads)
    launch(
        kernels.prepare_kernel, _programs(qkv, options),
        qkv, out, q_weight, q_bias, k_weight, k_bias, sin, cos, qkv.shape[1], heads.rotated, *strides, heads.eps,
        HAS_BIAS=q_bias is not None, **options,
    )  # fmt: skip
    return out


def prepare_backward(d_qkv: Tensor, qkv: Tensor, heads: Heads) -> None:
    """Compute `HeadRows.prepare_backward` by a kernel."""
    sin, cos, strides = _angles(heads)
    options = _options(d_qkv, heads)
    launch(
        kernels.prepare_backward_kernel, _programs(d_qkv, options),
        d_qkv, qkv, _dense(heads.q_weight), _dense(heads.k_weight), sin, cos,
        d_qkv.shape[1], heads.rotated, *strides, heads.eps, **options,
    )  # fmt: skip


def _angles(heads: Heads) -> tuple[Tensor | None, Tensor | None, tuple[int, int]]:
    """Return sines and cosines, and their strides over heads and tokens, which are the same of both."""
    sin, cos = heads.sin, heads.cos
    if sin is None or cos is None:
        return None, None, (0, 0)
    if sin.stride() != cos.stride() or sin.stride(-1) != 1:
        sin, cos = sin.contiguous(), cos.contiguous()
    return sin, cos, (sin.stride(0) if sin.ndim == 3 else 0, sin.stride(-2))


def _options(qkv: Tensor, heads: Heads) -> dict[str, Any]:
    pairs = next_power_of_2(qkv.shape[4] // 2)
    return {
        "HEADS": qkv.shape[3],
        "HEAD_DIM": qkv.shape[4],
        "BLOCK_PAIRS": pairs,
        "BLOCK_TOKENS": max(1, _ELEMENTS // (2 * pairs)),
        "NORM": heads.norm,
        "HAS_WEIGHT": heads.q_weight is not None,
        "ROTARY": heads.rotary,
        "PER_HEAD": heads.sin is not None and heads.sin.ndim == 3,
        "num_warps": _WARPS,
    }


def _programs(qkv: Tensor, options: dict[str, Any]) -> int:
    programs: int = qkv.shape[0] * cdiv(qkv.shape[1], options["BLOCK_TOKENS"])
    return programs


def _dense(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()
