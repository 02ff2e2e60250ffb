"""Temporal attention through PyTorch's ``scaled_dot_product_attention``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_adapters.ops.device import exporting

# Each (clip, token) pair is one sequence of T frames. CUDA limits a grid's second and third dimension to
# 65,535, and SDPA kernels of some versions put the batch there.
MAX_SEQUENCES = 65_535


def temporal_attention(
    q: Tensor, k: Tensor, v: Tensor, *, num_frames: int, scale: float, bias: Tensor | None
) -> Tensor:
    """Rearrange to sequences ``[B*N, H, T, d]``, attend over frames, and rearrange back.

    Args:
        q: Queries ``[B*T, N, H, d]``.
        k: Keys ``[B*T, N, G, d]``.
        v: Values ``[B*T, N, G, d]``.
        num_frames: T.
        scale: Factor on the scores.
        bias: Added to the scores, ``[H, T, T]``, or None.

    Returns:
        ``[B*T, N, H, d]``.
    """
    tokens, heads = q.shape[1], q.shape[2]
    sequences = tuple(_sequences(x, num_frames, heads) for x in (q, k, v))  # 3 x [B*N, H, T, d]
    mask = None if bias is None else bias.to(q.dtype)
    # What is exported must not depend on the number of clips.
    parts = [sequences] if exporting() else list(zip(*(x.split(MAX_SEQUENCES) for x in sequences), strict=True))
    chunks = [F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale) for q, k, v in parts]
    out: Tensor = chunks[0] if len(chunks) == 1 else torch.cat(chunks)  # [B*N, H, T, d]
    clips: Tensor = out.unflatten(0, (q.shape[0] // num_frames, tokens)).permute(0, 3, 1, 2, 4)  # [B, T, N, H, d]
    return clips.flatten(0, 1)


def _sequences(x: Tensor, num_frames: int, heads: int) -> Tensor:
    """Return the sequences of all tokens, each key/value head repeated for the query heads that it serves."""
    x = x.unflatten(0, (-1, num_frames)).permute(0, 2, 3, 1, 4).flatten(0, 1)  # [B*N, G, T, d]
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)
