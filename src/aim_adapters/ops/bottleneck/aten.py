"""Compute the hidden layer of an adapter by PyTorch's own operators, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def hidden(pre: Tensor, out: Tensor, factor: Tensor | None, rows_per_factor: int, scale: float) -> None:
    """Write ``f * gelu(pre)``, then a column of ``f``, then zeros; f is ``scale * factor`` of the row.

    Args:
        pre: What the down-projection gave ``[M, W]``, floating point, rows any distance apart.
        out: ``[M, P]`` of the same dtype, P more than W, rows any distance apart; overwritten.
        factor: Stochastic depth of each clip ``[clips]``, float32 at least, or None for 1.
        rows_per_factor: Rows of a clip.
        scale: Factor on the branch.
    """
    width = pre.shape[1]
    f = _of_rows(factor, rows_per_factor, scale)
    torch.mul(F.gelu(pre), f, out=out[:, :width])
    out[:, width:] = 0
    out[:, width : width + 1] = f


def hidden_backward(
    d_hidden: Tensor, pre: Tensor, out: Tensor | None, factor: Tensor | None, rows_per_factor: int, scale: float
) -> Tensor:
    """Turn the gradient of ``gelu(pre)`` behind f into that of ``pre``, in place.

    Args:
        d_hidden: Gradient of the branch times the up-projection's weights, without f, ``[M, W]``; overwritten.
        pre: What the down-projection gave ``[M, W]``, same dtype, rows any distance apart.
        out: Where to write what `hidden` writes, or None.
        factor: Stochastic depth of each clip ``[clips]``, float32 at least, or None for 1.
        rows_per_factor: Rows of a clip.
        scale: Factor on the branch.

    Returns:
        Gradient of the down-projection's bias ``[W]``: the sum of the rows, float32 (float64 for float64).
    """
    if factor is not None or scale != 1:
        d_hidden.mul_(_of_rows(factor, rows_per_factor, scale))
    torch.ops.aten.gelu_backward(d_hidden, pre, grad_input=d_hidden)
    if out is not None:
        hidden(pre, out, factor, rows_per_factor, scale)
    return d_hidden.sum(0, dtype=torch.promote_types(pre.dtype, torch.float32))


def _of_rows(factor: Tensor | None, rows: int, scale: float) -> Tensor | float:
    return scale if factor is None else factor.repeat_interleave(rows).unsqueeze(-1) * scale  # [M, 1]
