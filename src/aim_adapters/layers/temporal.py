"""Temporal positions: an embedding of each frame, or a bias for the distance between two frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def new_temporal_embedding(
    num_frames: int, dim: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> nn.Parameter:
    """Return a new temporal embedding ``[1, T, D]``, zero at the start.

    Args:
        num_frames: Frames per clip T.
        dim: Width D of the tokens.
        device: Device of the parameter.
        dtype: Dtype of the parameter.
    """
    return nn.Parameter(torch.zeros(1, num_frames, dim, device=device, dtype=dtype))


def is_temporal(key: str) -> bool:
    """Return whether a tensor holds temporal positions, and so depends on the number of frames.

    Args:
        key: Its key in a checkpoint.
    """
    return key.rpartition(".")[2] in ("temporal_embedding", "temporal_bias")


def add_temporal_embedding(x: Tensor, embedding: Tensor) -> Tensor:
    """Add each frame's embedding to all its tokens, [class] included.

    Args:
        x: Tokens ``[B*T, ..., D]``, floating point.
        embedding: Temporal embedding ``[1, T, D]``; cast to the dtype of ``x``.

    Returns:
        Tokens ``[B*T, ..., D]`` in the dtype of ``x``.
    """
    clips = x.unflatten(0, (-1, embedding.shape[1]))  # [B, T, ..., D]
    shape = [1, embedding.shape[1]] + [1] * (clips.ndim - 3) + [embedding.shape[2]]
    # Not `flatten`, behind which the ONNX exporter by tracing takes the number of clips for a constant.
    out: Tensor = (clips + embedding.to(x.dtype).view(shape)).reshape(x.shape)  # [B*T, ..., D]
    return out


def new_temporal_bias(
    num_frames: int, heads: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> nn.Parameter:
    """Return a new table of relative temporal biases ``[2T-1, H]``, truncated normal with standard deviation 0.02.

    The reference initializes it likewise but, by an oversight, leaves it frozen.

    Args:
        num_frames: Frames per clip T.
        heads: Number of heads H.
        device: Device of the parameter.
        dtype: Dtype of the parameter.
    """
    table = nn.Parameter(torch.empty(2 * num_frames - 1, heads, device=device, dtype=dtype))
    nn.init.trunc_normal_(table, std=0.02)
    return table


def relative_temporal_bias(table: Tensor) -> Tensor:
    """Return the temporal bias of each pair of frames.

    Args:
        table: Relative temporal biases ``[2T-1, H]``; row ``T-1 + s - t`` is for query frame s and key frame t.

    Returns:
        ``[H, T, T]`` in the dtype of ``table``: head, query frame, key frame.
    """
    frames = torch.arange((table.shape[0] + 1) // 2, device=table.device)
    distance = frames[:, None] - frames[None, :] + len(frames) - 1  # [T, T]
    return table[distance].permute(2, 0, 1)  # [H, T, T]


def resize_temporal_embedding(embedding: Tensor, num_frames: int) -> Tensor:
    """Interpolate a temporal embedding linearly to another number of frames.

    Old and new frames are taken to span the same time, each frame at the center of its segment.

    Args:
        embedding: Temporal embedding ``[1, T, D]``.
        num_frames: The new number of frames.

    Returns:
        ``[1, num_frames, D]`` in the dtype of ``embedding``.
    """
    by_width = rearrange(embedding.float(), "1 t d -> 1 d t")
    resized = F.interpolate(by_width, size=num_frames, mode="linear", align_corners=False)
    return rearrange(resized, "1 d t -> 1 t d").to(embedding.dtype)


def resize_temporal_bias(table: Tensor, num_frames: int) -> Tensor:
    """Interpolate a table of relative temporal biases linearly to another number of frames.

    The largest distance between old frames becomes the largest between new ones, and distance 0 stays distance 0.

    Args:
        table: Relative temporal biases ``[2T-1, H]``.
        num_frames: The new number of frames.

    Returns:
        ``[2*num_frames-1, H]`` in the dtype of ``table``.
    """
    by_head = rearrange(table.float(), "distance h -> 1 h distance")
    if num_frames == 1:
        resized = by_head[..., by_head.shape[-1] // 2, None]  # distance 0 only
    else:
        resized = F.interpolate(by_head, size=2 * num_frames - 1, mode="linear", align_corners=True)
    return rearrange(resized, "1 h distance -> distance h").to(table.dtype)
