"""Spatial attention through PyTorch's ``scaled_dot_product_attention``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# CUDA limits a grid's second and third dimension to 65,535, and SDPA kernels of some versions put the batch there.
MAX_SEQUENCES = 65_535


def spatial_attention(qkv: Tensor, *, scale: float, bias: Tensor | None, mask: Tensor | None) -> Tensor:
    """Rearrange to ``[F, H, N, d]``, attend, and rearrange back; bias and mask are summed once for all frames.

    Args:
        qkv: Queries, keys and values ``[F, N, 3, H, d]``; F frames or windows.
        scale: Factor on the scores.
        bias: Added to the scores, ``[H, N, N]``, or None.
        mask: Added to the scores, ``[W, N, N]``; window f takes ``mask[f % W]``; or None.

    Returns:
        ``[F, N, H, d]``.
    """
    whole = MAX_SEQUENCES if mask is None else max(1, MAX_SEQUENCES // mask.shape[0]) * mask.shape[0]
    added = None if bias is None else bias.to(qkv.dtype)  # [H, N, N]
    if mask is not None:
        added = mask.to(qkv.dtype)[:, None] + (0 if added is None else added)  # [W, H or 1, N, N]
    chunks = []
    for chunk in qkv.split(whole):
        q, k, v = chunk.permute(2, 0, 3, 1, 4)  # [F, H, N, d] each
        attn_mask = added
        if mask is not None and added is not None:
            times = chunk.shape[0] // mask.shape[0]
            attn_mask = added.expand(times, *added.shape).flatten(0, 1)  # [F, H or 1, N, N]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, scale=scale)
        chunks.append(out.transpose(1, 2))  # [F, N, H, d]
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks)
