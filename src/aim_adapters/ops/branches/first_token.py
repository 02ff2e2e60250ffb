"""Attention from the first token of each frame, by plain PyTorch: so little is left that fusing it gains nothing."""

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
        h = F.layer_norm(x, x.shape[-1:], t.norm_weight, t.norm_bias, eps).to(dtype)  # [B*T, N, D]
        width = t.qkv_weight.shape[0] // 3
        q_w, kv_w = t.qkv_weight.to(dtype).split((width, 2 * width))
        q_b, kv_b = (None, None) if t.qkv_bias is None else t.qkv_bias.to(dtype).split((width, 2 * width))
        q = F.linear(h[:, :1], q_w, q_b).unflatten(-1, (heads, -1)).transpose(1, 2)  # [B*T, H, 1, d]
        packed = F.linear(h, kv_w, kv_b).unflatten(-1, (2, heads, -1))  # [B*T, N, 2, H, d]
        k, v = packed.transpose(1, 3).unbind(2)  # 2 x [B*T, H, N, d]
        o = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)  # [B*T, 1, H*d]
        out = F.linear(o, t.out_weight.to(dtype), in_dtype(t.out_bias, dtype))  # [B*T, 1, D]
        return out if t.gamma is None else out * t.gamma.to(dtype)
