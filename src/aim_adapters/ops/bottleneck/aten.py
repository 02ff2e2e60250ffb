"""Compute the parts of an adapter by PyTorch's own operators, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def up_add(
    pre: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    residual: Tensor,
    other: Tensor | None,
    factor: Tensor | None,
    rows_per_factor: int,
    scale: float,
) -> Tensor:
    """Return ``residual + other + f * (gelu(pre) @ up_weight^T + up_bias)``, f being ``scale * factor`` of the row.

    Args:
        pre: What the down-projection gave ``[M, W]``, floating point.
        up_weight: ``[D, W]``, same dtype.
        up_bias: ``[D]``, same dtype.
        residual: ``[M, D]``, float32 or the dtype of ``pre``.
        other: A second summand ``[M, D]``, same dtype as ``pre``, or None.
        factor: Stochastic depth of each clip ``[clips]``, float32, or None for 1.
        rows_per_factor: Rows of a clip; M is a multiple of it.
        scale: Factor on the branch.

    Returns:
        ``[M, D]`` in the dtype of ``residual``.
    """
    branch = F.linear(F.gelu(pre), up_weight, up_bias)  # [M, D]
    if factor is None:
        out = torch.add(residual, branch, alpha=scale)
    else:
        out = torch.addcmul(residual, branch, _of_rows(factor, rows_per_factor), value=scale)  # float32 at least
    return (out if other is None else out.add_(other)).to(residual.dtype)


def down_backward(
    d_out: Tensor,
    up_weight: Tensor,
    pre: Tensor,
    factor: Tensor | None,
    rows_per_factor: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Carry a gradient through the up-projection and the GELU; the hidden layer is computed again.

    Args:
        d_out: Gradient of what `up_add` returned ``[M, D]``, float32 or the dtype of ``pre``.
        up_weight: ``[D, W]``, same dtype as ``pre``.
        pre: What the down-projection gave ``[M, W]``, floating point.
        factor: Stochastic depth of each clip ``[clips]``, float32, or None for 1.
        rows_per_factor: Rows of a clip; M is a multiple of it.
        scale: Factor on the branch.

    Returns:
        The gradient of ``pre`` ``[M, W]``; ``f * gelu(pre)`` ``[M, W]``, of which ``d_out^T`` times it is the gradient
        of ``up_weight``; the gradients of ``up_bias`` ``[D]`` and of the down-projection's bias ``[W]``, these two
        float32 (float64 for float64).
    """
    sums = torch.promote_types(pre.dtype, torch.float32)
    d_pre, hidden = d_out.to(pre.dtype) @ up_weight, F.gelu(pre)  # [M, W]
    f: Tensor | float = scale
    if factor is None:
        d_up_bias = d_out.sum(0, dtype=sums).mul_(scale)
    else:
        by_clip = factor.to(sums) * scale  # [clips]
        d_up_bias = by_clip @ d_out.unflatten(0, (-1, rows_per_factor)).sum(1, dtype=sums)
        f = _of_rows(by_clip, rows_per_factor)
    if factor is not None or scale != 1:
        d_pre.mul_(f)
        hidden.mul_(f)
    torch.ops.aten.gelu_backward(d_pre, pre, grad_input=d_pre)
    return d_pre, hidden, d_up_bias, d_pre.sum(0, dtype=sums)


def _of_rows(factor: Tensor, rows: int) -> Tensor:
    return factor.repeat_interleave(rows).unsqueeze(-1)  # [M, 1]
