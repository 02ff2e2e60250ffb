"""The oracle: spatial attention in plain PyTorch, step by step."""

from __future__ import annotations

import torch
from torch import Tensor


def spatial_attention(qkv: Tensor, *, scale: float, bias: Tensor | None, mask: Tensor | None) -> Tensor:
    """Let every token attend to the tokens of its own frame.

    Args:
        qkv: Queries, keys and values ``[F, N, 3, H, d]``; F frames or windows.
        scale: Factor on the scores.
        bias: Added to the scores, ``[H, N, N]``, or None.
        mask: Added to the scores, ``[W, N, N]``; window f takes ``mask[f % W]``; or None.

    Returns:
        ``[F, N, H, d]``.
    """
    q, k, v = qkv.unbind(2)
    scores = torch.einsum("fnhd,fmhd->fhnm", q * scale, k)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if mask is not None:
        windows = scores.unflatten(0, (-1, mask.shape[0]))  # [F / W, W, H, N, N]
        scores = (windows + mask.to(scores.dtype)[:, None]).flatten(0, 1)
    return torch.einsum("fhnm,fmhd->fnhd", scores.softmax(-1), v)
