"""Attend from the first token of each frame alone, by plain PyTorch: so little is left that fusing it gains nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def attend_from_first(x: Tensor, tensors: Sequence[Tensor | None], *, heads: int, scale: float, eps: float) -> Tensor:
    """Return what a frozen attention branch adds to the first token of each frame.

    Args:
        x: Tokens ``[B*T, N, D]``.
        tensors: As `ATTENTION_FROZEN` names them.
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
        norm_w, norm_b, qkv_w, qkv_b, out_w, out_b, gamma = (None if t is None else t.to(x.dtype) for t in tensors)
        assert qkv_w is not None and out_w is not None
        h = F.layer_norm(x, x.shape[-1:], norm_w, norm_b, eps).to(dtype)  # [B*T, N, D]
        width = qkv_w.shape[0] // 3
        q_w, kv_w = qkv_w.to(dtype).split((width, 2 * width))
        q_b, kv_b = (None, None) if qkv_b is None else qkv_b.to(dtype).split((width, 2 * width))
        q = F.linear(h[:, :1], q_w, q_b).unflatten(-1, (heads, -1)).transpose(1, 2)  # [B*T, H, 1, d]
        packed = F.linear(h, kv_w, kv_b).unflatten(-1, (2, heads, -1))  # [B*T, N, 2, H, d]
        k, v = packed.transpose(1, 3).unbind(2)  # 2 x [B*T, H, N, d]
        o = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)  # [B*T, 1, H*d]
        out = F.linear(o, out_w.to(dtype), None if out_b is None else out_b.to(dtype))  # [B*T, 1, D]
        return out if gamma is None else out * gamma.to(dtype)
