"""Attention from the first token of each frame, by plain PyTorch: so little is left that fusing it gains nothing.

One query a head needs neither keys nor values of the tokens. Its score with token n is ``q·(W_k h_n + b_k)``, which
is ``(W_kᵀ q)·h_n`` and a number that softmax takes away; and the weighted sum of values is ``W_v (Σ p_n h_n) + b_v``.
So the frozen matrices multiply one row a frame and head instead of all tokens. It is made of matrix products, whose
results are the same bits each time; the gradients of PyTorch's attention are not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_adapters.ops.branches.linear import in_dtype
from aim_adapters.ops.branches.tensors import AttentionTensors


def attend_from_first(x: Tensor, t: AttentionTensors, *, heads: int, scale: float, eps: float) -> Tensor:
    """Return what a frozen attention branch adds to the first token of each frame.

    Args:
        x: Tokens ``[B*T, N, D]``.
        t: The frozen layers.
        heads: H.
        scale: Factor on the scores.
        eps: Of the norm.

    Returns:
        ``[B*T, 1, D]``.
    """
    device = x.device.type
    lowers = x.dtype != torch.float64 and torch.is_autocast_enabled(device)  # autocast leaves float64 alone
    dtype = torch.get_autocast_dtype(device) if lowers else x.dtype
    with torch.autocast(device, enabled=False):
        t = AttentionTensors(*(None if tensor is None else tensor.to(x.dtype) for tensor in t))  # type: ignore[arg-type]
        h = F.layer_norm(x, x.shape[-1:], t.norm_weight, t.norm_bias, eps)  # [B*T, N, D]
        h = h.to(torch.promote_types(h.dtype, torch.float32))  # in which PyTorch's attention too sums and takes softmax
        q_w, k_w, v_w = t.qkv_weight.to(dtype).chunk(3)  # [H*d, D]
        q_b, _, v_b = (None,) * 3 if t.qkv_bias is None else t.qkv_bias.to(dtype).chunk(3)
        q = F.linear(h[:, 0].to(dtype), q_w, q_b)  # [B*T, H*d]
        asked = scale * _by_head(q, k_w.unflatten(0, (heads, -1))).to(h.dtype)  # [B*T, H, D]
        weights = torch.bmm(asked, h.mT).softmax(-1)  # [B*T, H, N]
        seen = torch.bmm(weights, h).to(dtype)  # [B*T, H, D]
        o = _by_head(seen.flatten(1), v_w.unflatten(0, (heads, -1)).mT).flatten(1)  # [B*T, H*d]
        o = (o if v_b is None else o + v_b).unsqueeze(1)
        out = F.linear(o, t.out_weight.to(dtype), in_dtype(t.out_bias, dtype))  # [B*T, 1, D]
        return out if t.gamma is None else out * t.gamma.to(dtype)


def _by_head(x: Tensor, weights: Tensor) -> Tensor:
    """Multiply each head's part of rows ``[F, H*i]`` by its own matrix ``[H, i, o]``; return ``[F, H, o]``."""
    rows = x.unflatten(1, (len(weights), -1)).transpose(0, 1)  # [H, F, i]
    return torch.bmm(rows, weights).transpose(0, 1)
