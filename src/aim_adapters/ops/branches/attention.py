"""Attention over frames or tokens of a packed projection, forward and backward, outside of autograd."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from aim_adapters.ops.branches.plan import AttentionPlan
from aim_adapters.ops.branches.tensors import WindowTensors
from aim_adapters.ops.spatial_attention.tiles import MAX_WINDOW_TOKENS

_FLASH = {"cpu": (torch.float64, torch.float32, torch.bfloat16, torch.float16), "cuda": (torch.bfloat16, torch.float16)}


def flash_takes(device: str, dtype: torch.dtype, width: int) -> bool:
    """Return whether PyTorch's flash attention computes heads of a width in a dtype."""
    return dtype in _FLASH.get(device, ()) and (device == "cpu" or (width % 8 == 0 and width <= 256))


def lse_shape(plan: AttentionPlan, frames: int, tokens: int, index: Tensor | None) -> tuple[int, ...]:
    """Return the shape of the log-sum-exp that `attend` keeps; a tile of all tokens needs none."""
    if index is not None:
        frames, tokens = frames * index.shape[0], index.shape[1]
    return (0,) if plan.implementation == "triton" and tokens <= MAX_WINDOW_TOKENS else (frames, plan.heads, tokens)


def attend(
    qkv: Tensor,
    bias: Tensor | None,
    plan: AttentionPlan,
    num_frames: int,
    *,
    windows: WindowTensors | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attend.

    Args:
        qkv: ``[B*T, N, 3, H, d]``, contiguous.
        bias: Relative bias along time ``[H, T, T]``, or None.
        plan: The branch.
        num_frames: T.
        windows: The windows, if the tokens attend within some.
        out: For tokens: where to write, ``[B*T, N, H, d]``, its last dimension contiguous.

    Returns:
        ``[B*T, N, H, d]``, and what the backward pass needs beside it: the log-sum-exp of the scores
        ``[B*T, H, N]`` for tokens, None for frames.
    """
    if plan.over == "frames":
        if plan.implementation == "triton":
            from aim_adapters.ops.temporal_attention import triton as temporal

            return temporal.packed_forward(qkv, bias, num_frames, plan.scale), None
        weights, _, _, v = _weights_over_frames(qkv, bias, plan, num_frames)
        return _frames_first(torch.bmm(weights, v), qkv, num_frames), None
    window_bias, mask, index = windows or (None, None, None)
    if plan.implementation == "triton":
        from aim_adapters.ops.spatial_attention import triton as spatial

        return spatial.forward(qkv, plan.scale, window_bias, mask, index=index, out=out)
    parts = qkv if index is None else _gathered(qkv, index)
    q, k, v = parts.transpose(1, 3).unbind(2)  # 3 x [B*T, H, N, d]
    if qkv.device.type == "cpu":
        o, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, attn_mask=_added(window_bias, mask, parts), scale=plan.scale
        )
    else:
        o, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=plan.scale)[:2]
    o = o.transpose(1, 2)
    if index is not None:
        o = _scattered(o, index)
    return (o.contiguous() if out is None else out.copy_(o)), lse.contiguous()  # on a CPU it comes transposed


def attend_backward(
    d_o: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    o: Tensor | None,
    lse: Tensor | None,
    plan: AttentionPlan,
    num_frames: int,
    *,
    windows: WindowTensors | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients, and the output.

    Args:
        d_o: Gradient of the output ``[B*T, N, H, d]``, its last dimension contiguous.
        qkv: ``[B*T, N, 3, H, d]``, contiguous.
        bias: Relative bias along time ``[H, T, T]``, or None.
        o: What `attend` returned; None for frames, where it is computed again on the way.
        lse: The same.
        plan: The branch.
        num_frames: T.
        windows: The windows, if the tokens attend within some; they get no gradient.

    Returns:
        Gradient of ``qkv``, packed; the output ``[B*T, N, H, d]``; gradient of ``bias``, or None.
    """
    if plan.over == "frames":
        if plan.implementation == "triton":
            from aim_adapters.ops.temporal_attention import triton as temporal

            d_qkv, d_bias, o = temporal.packed_backward(d_o, qkv, bias, num_frames, plan.scale)
            return d_qkv, o, None if bias is None else d_bias
        return _over_frames_backward(d_o, qkv, bias, plan, num_frames)
    assert o is not None and lse is not None
    window_bias, mask, index = windows or (None, None, None)
    if plan.implementation == "triton":
        from aim_adapters.ops.spatial_attention import triton as spatial

        return spatial.backward(d_o, qkv, o, lse, plan.scale, window_bias, mask, index=index), o, None
    parts, *rows = (x if index is None else _gathered(x, index) for x in (qkv, d_o, o))
    q, k, v = parts.transpose(1, 3).unbind(2)  # 3 x [B*T, H, N, d]
    rows = [x.transpose(1, 2) for x in rows]
    if qkv.device.type == "cpu":
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            rows[0], q, k, v, rows[1], lse, 0.0, False, attn_mask=_added(window_bias, mask, parts), scale=plan.scale
        )
    else:
        tokens, nothing = qkv.shape[1], torch.empty(0, dtype=torch.uint64, device=qkv.device)
        with _deterministic():
            found = torch.ops.aten._scaled_dot_product_flash_attention_backward(
                rows[0], q, k, v, rows[1], lse, None, None, tokens, tokens, 0.0, False, nothing, nothing,
                scale=plan.scale,
            )  # fmt: skip
    d_qkv = torch.stack([x.transpose(1, 2) for x in found], 2)
    return d_qkv if index is None else _scattered(d_qkv, index), o, None


@contextmanager
def _deterministic() -> Iterator[None]:
    """Let flash attention sum the gradient of queries in one order, which only PyTorch's global switch asks for."""
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch._C._set_deterministic_algorithms(True, warn_only=warns or not before)  # the public one imports Inductor
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(before, warn_only=warns)


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    """Turn ``[F, W*N, ...]`` into windows ``[F*W, N, ...]``."""
    windows: Tensor = x[:, index.flatten()].unflatten(1, index.shape).flatten(0, 1)
    return windows


def _scattered(x: Tensor, index: Tensor) -> Tensor:
    """Turn windows ``[F*W, N, ...]`` into ``[F, W*N, ...]``."""
    rows = x.unflatten(0, (-1, index.shape[0])).flatten(1, 2)  # [F, W*N, ...]
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    out[:, index.flatten()] = rows
    return out


def _added(bias: Tensor | None, mask: Tensor | None, parts: Tensor) -> Tensor | None:
    """Return what is added to the scores of all windows ``[F*W, H, N, N]``."""
    if bias is None:
        return None
    added = bias if mask is None else bias + mask.unsqueeze(1)  # [(W,) H, N, N]
    frames = len(parts) if mask is None else len(parts) // len(mask)
    return added.to(parts.dtype).expand(frames, *added.shape).reshape(len(parts), *bias.shape)


def _weights_over_frames(
    qkv: Tensor, bias: Tensor | None, plan: AttentionPlan, num_frames: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the softmax weights ``[B*N*H, T, T]`` and, as ``[B*N*H, T, d]``, queries, keys and values."""
    clips = qkv.unflatten(0, (-1, num_frames)).permute(3, 0, 2, 4, 1, 5)  # [3, B, N, H, T, d]
    q, k, v = clips.flatten(1, 3).unbind()
    scores = torch.bmm(q, k.mT).mul_(plan.scale)
    if bias is not None:
        scores.unflatten(0, (-1, len(bias))).add_(bias)
    return scores.softmax(-1), q, k, v


def _over_frames_backward(
    d_o: Tensor, qkv: Tensor, bias: Tensor | None, plan: AttentionPlan, num_frames: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    weights, q, k, v = _weights_over_frames(qkv, bias, plan, num_frames)
    g = d_o.unflatten(0, (-1, num_frames)).permute(0, 2, 3, 1, 4).flatten(0, 2)  # [B*N*H, T, d]
    d_scores = torch.ops.aten._softmax_backward_data(torch.bmm(g, v.mT), weights, -1, weights.dtype)
    d_bias = None
    if bias is not None:
        d_bias = d_scores.unflatten(0, (-1, len(bias))).sum(0, dtype=bias.dtype)
    d = q.new_empty((3, *q.shape))
    torch.bmm(weights.mT, g, out=d[2])
    d_scores.mul_(plan.scale)
    torch.bmm(d_scores, k, out=d[0])
    torch.bmm(d_scores.mT, q, out=d[1])
    d_qkv = d.view(3, -1, *qkv.shape[1:2], qkv.shape[3], num_frames, qkv.shape[4])  # [3, B, N, H, T, d]
    d_qkv = d_qkv.permute(1, 4, 2, 0, 3, 5).flatten(0, 1).contiguous()  # [B*T, N, 3, H, d]; one frame: a view
    return d_qkv, _frames_first(torch.bmm(weights, v), qkv, num_frames), d_bias


def _frames_first(x: Tensor, qkv: Tensor, num_frames: int) -> Tensor:
    """Turn ``[B*N*H, T, d]`` into ``[B*T, N, H, d]``."""
    clips = x.view(-1, qkv.shape[1], qkv.shape[3], num_frames, qkv.shape[4])  # [B, N, H, T, d]
    out: Tensor = clips.permute(0, 3, 1, 2, 4).flatten(0, 1)
    return out.contiguous()
