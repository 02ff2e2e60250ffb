"""The row-wise parts of a frozen block by PyTorch's own operators, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_adapters.ops.frozen.inner import InnerNorm

QUICK_GELU = 1.702


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype, norm: str = "layer"
) -> Tensor:
    """Compute `FrozenRows.layer_norm` by PyTorch's operators."""
    wide = torch.promote_types(x.dtype, dtype)
    for parameter in (weight, bias):
        wide = wide if parameter is None else torch.promote_types(wide, parameter.dtype)
    if norm == "rms":
        wide = torch.promote_types(wide, torch.float32)
        rows = x.to(wide)
        out = rows * _rstd(rows, eps)
        out = out if weight is None else out.mul_(weight)
        return (out if bias is None else out.add_(bias)).to(dtype)
    out = F.layer_norm(x.to(wide), x.shape[-1:], _to(weight, wide), _to(bias, wide), eps)
    return out.to(dtype)


def add_layer_norm(
    x: Tensor,
    other: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    norm: str = "layer",
) -> tuple[Tensor, Tensor]:
    """Compute `FrozenRows.add_layer_norm` by PyTorch's operators."""
    total = add(x, other)
    return total, layer_norm(total, weight, bias, eps, dtype, norm)


def add(x: Tensor, other: Tensor) -> Tensor:
    """Compute `FrozenRows.add` by PyTorch's operators."""
    return torch.add(x, other).to(x.dtype)


def layer_norm_backward(
    d_h: Tensor, x: Tensor, weight: Tensor | None, eps: float, d_residual: Tensor | None, norm: str = "layer"
) -> Tensor:
    """Compute `FrozenRows.layer_norm_backward` by PyTorch's operators."""
    wide = torch.promote_types(x.dtype, torch.float32)
    rows, d_rows = x.to(wide), d_h.to(wide)
    if norm == "rms":
        g, rstd = d_rows if weight is None else d_rows * weight, _rstd(rows, eps)
        d_rows = (g - rows * (rstd * rstd * (g * rows).mean(-1, keepdim=True))) * rstd
        return (d_rows if d_residual is None else d_rows + d_residual).to(x.dtype)
    # The statistics alone would take longer: this is vectorized, the variance is not.
    _, mean, rstd = torch.native_layer_norm(rows, x.shape[-1:], None, None, eps)  # [M, 1]
    d_x: Tensor = torch.ops.aten.native_layer_norm_backward(
        d_rows,
        rows,
        x.shape[-1:],
        mean,
        rstd,
        _to(weight, wide),
        None,
        [True, False, False],
    )[0]
    return (d_x if d_residual is None else d_x.add_(d_residual)).to(x.dtype)


def activation(pre: Tensor, kind: str, out: Tensor | None = None, value: Tensor | None = None) -> Tensor:
    """Compute `FrozenRows.activation` by PyTorch's operators."""
    out = _activation(pre, kind, torch.empty_like(pre) if out is None else out)
    return out if value is None else out.mul_(value)


def _activation(pre: Tensor, kind: str, out: Tensor) -> Tensor:
    if kind == "quick_gelu":
        return torch.mul(pre, QUICK_GELU, out=out).sigmoid_().mul_(pre)
    if kind == "relu":
        return torch.clamp(pre, min=0, out=out)
    if kind == "silu":
        torch.ops.aten.silu(pre, out=out)
    else:
        torch.ops.aten.gelu(pre, approximate=_APPROXIMATE[kind], out=out)
    return out


def activation_backward(
    d_act: Tensor, pre: Tensor, kind: str, value: Tensor | None = None, d_pre: Tensor | None = None
) -> Tensor:
    """Compute `FrozenRows.activation_backward` by PyTorch's operators."""
    if value is not None and d_pre is not None:
        activation_backward(torch.mul(d_act, value, out=d_pre), pre, kind)
        return d_act.mul_(activation(pre, kind))
    aten = torch.ops.aten
    if kind == "quick_gelu":  # silu(a x) / a
        aten.silu_backward(d_act, QUICK_GELU * pre, grad_input=d_act)
    elif kind == "relu":
        aten.threshold_backward(d_act, pre, 0, grad_input=d_act)
    elif kind == "silu":
        aten.silu_backward(d_act, pre, grad_input=d_act)
    else:
        aten.gelu_backward(d_act, pre, approximate=_APPROXIMATE[kind], grad_input=d_act)
    return d_act


def activation_norm(pre: Tensor, kind: str, inner: InnerNorm, out: Tensor, value: Tensor | None = None) -> Tensor:
    """Compute `FrozenRows.activation_norm` by PyTorch's operators."""
    units = inner.units
    activated = activation(pre, kind, value=value)[:, :units]
    out[:, units:] = 0
    out[:, :units] = layer_norm(activated, inner.weight, inner.bias, inner.eps, out.dtype, inner.norm)
    return out


def activation_norm_backward(
    d_out: Tensor,
    pre: Tensor,
    kind: str,
    inner: InnerNorm,
    value: Tensor | None = None,
    d_pre: Tensor | None = None,
) -> Tensor:
    """Compute `FrozenRows.activation_norm_backward` by PyTorch's operators."""
    units = inner.units
    activated = activation(pre, kind, value=value)[:, :units]
    d_out[:, units:] = 0
    d_out[:, :units] = layer_norm_backward(d_out[:, :units], activated, inner.weight, inner.eps, None, inner.norm)
    return activation_backward(d_out, pre, kind, value, d_pre)


_APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}


def _to(parameter: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if parameter is None else parameter.to(dtype)


def _rstd(rows: Tensor, eps: float) -> Tensor:
    """Return one over the root of the mean of squares of rows ``[M, 1]``."""
    return rows.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
