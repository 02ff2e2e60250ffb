"""What computes the row-wise parts of frozen layers: the protocols, and the choice by device."""

from __future__ import annotations

import functools
from typing import Protocol

import torch
from torch import Tensor

from aim_adapters.ops.frozen import aten, aten_fp8
from aim_adapters.ops.frozen.inner import InnerNorm
from aim_adapters.ops.frozen.scaled import Scaled


class FrozenRows(Protocol):
    """The row-wise parts of a frozen block. Triton's kernels want contiguous rows, D at most 8192, and no float64."""

    def layer_norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype, norm: str = "layer"
    ) -> Tensor:
        """Normalize rows; statistics in float32, or float64 for float64.

        Args:
            x: Tokens ``[M, D]``, floating point.
            weight: ``[D]``, any floating dtype, or None.
            bias: ``[D]``, any floating dtype, or None.
            eps: Added to the variance, or to the mean of squares.
            dtype: Dtype of the result.
            norm: ``"layer"``, or ``"rms"``: rows are not centered, and divided by the root of their mean square.

        Returns:
            ``[M, D]`` in ``dtype``.
        """
        ...

    def add_layer_norm(
        self,
        x: Tensor,
        other: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        dtype: torch.dtype,
        norm: str = "layer",
    ) -> tuple[Tensor, Tensor]:
        """Add a branch to the residual stream, and normalize the rows of the sum.

        Args:
            x: Tokens ``[M, D]``, floating point.
            other: The branch ``[M, D]``, floating point.
            weight: ``[D]``, any floating dtype, or None.
            bias: ``[D]``, any floating dtype, or None.
            eps: Added to the variance, or to the mean of squares.
            dtype: Dtype of the normalized rows.
            norm: ``"layer"`` or ``"rms"``.

        Returns:
            The sum ``[M, D]`` in the dtype of ``x``, and it normalized ``[M, D]`` in ``dtype``.
        """
        ...

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """Return the sum of two tensors of a shape in the dtype of the first."""
        ...

    def layer_norm_backward(
        self, d_h: Tensor, x: Tensor, weight: Tensor | None, eps: float, d_residual: Tensor | None, norm: str = "layer"
    ) -> Tensor:
        """Return the gradient by the input of a norm whose weight and bias are frozen.

        Args:
            d_h: Gradient of the normalized tokens ``[M, D]``.
            x: What was normalized ``[M, D]``.
            weight: ``[D]``, any floating dtype, or None.
            eps: Added to the variance, or to the mean of squares.
            d_residual: Gradient that reaches ``x`` past the norm, added, ``[M, D]``, dtype of ``x``, or None.
            norm: ``"layer"`` or ``"rms"``.

        Returns:
            ``[M, D]`` in the dtype of ``x``.
        """
        ...

    def activation(self, pre: Tensor, kind: str, out: Tensor | None = None, value: Tensor | None = None) -> Tensor:
        """Apply an MLP's activation, and multiply by what it gates.

        Args:
            pre: Its input ``[M, K]``, floating point.
            kind: ``"gelu"``, ``"gelu_tanh"``, ``"quick_gelu"``, ``"relu"`` or ``"silu"``.
            out: Where to write, ``[M, K]`` of the same dtype; a new tensor if None.
            value: What is gated ``[M, K]``, of the same dtype and with rows as far apart as those of ``pre``; or None.

        Returns:
            ``[M, K]`` in the dtype of ``pre``.
        """
        ...

    def activation_backward(
        self, d_act: Tensor, pre: Tensor, kind: str, value: Tensor | None = None, d_pre: Tensor | None = None
    ) -> Tensor:
        """Turn the gradient of `activation`'s output into that of its input, in place, or into those of both.

        Args:
            d_act: Gradient of the output ``[M, K]``; becomes that of ``pre``, or that of ``value`` if there is one.
            pre: The activation's input ``[M, K]``, same dtype.
            kind: ``"gelu"``, ``"gelu_tanh"``, ``"quick_gelu"``, ``"relu"`` or ``"silu"``.
            value: What was gated, or None.
            d_pre: Where to write the gradient of ``pre`` if something was gated, of the same dtype and with rows as
                far apart as those of ``d_act``.

        Returns:
            ``d_act`` itself.
        """
        ...

    def activation_norm(
        self, pre: Tensor, kind: str, inner: InnerNorm, out: Tensor, value: Tensor | None = None
    ) -> Tensor:
        """Compute `activation`, and normalize the rows of its output.

        Args:
            pre: The activation's input ``[M, >= K]``.
            kind: Of the activation.
            inner: The norm, over K.
            out: Where to write, ``[M, >= K]`` of the same dtype; zeros behind K.
            value: What is gated, or None.

        Returns:
            ``out`` itself.
        """
        ...

    def activation_norm_backward(
        self,
        d_out: Tensor,
        pre: Tensor,
        kind: str,
        inner: InnerNorm,
        value: Tensor | None = None,
        d_pre: Tensor | None = None,
    ) -> Tensor:
        """Do for `activation_norm` what `activation_backward` does for `activation`; zeros behind K.

        Args:
            d_out: Gradient of the output ``[M, >= K]``; overwritten.
            pre: The activation's input ``[M, >= K]``, same dtype.
            kind: Of the activation.
            inner: The norm, over K.
            value: What was gated, or None.
            d_pre: Where to write the gradient of ``pre`` if something was gated.

        Returns:
            ``d_out`` itself.
        """
        ...


class ScaledRows(Protocol):
    """The row-wise parts that write float8. Triton's kernels want contiguous rows, D at most 8192, K at most 16384."""

    def quantize(self, x: Tensor) -> Scaled:
        """Scale the rows of a matrix, and round them.

        Args:
            x: ``[M, K]``, floating point.

        Returns:
            ``[M, K]``.
        """
        ...

    def quantize_columns(self, weight: Tensor) -> Scaled:
        """Scale the columns of a matrix, and round them.

        Args:
            weight: ``[N, K]``, floating point.

        Returns:
            The matrix transposed, ``[K, N]``.
        """
        ...

    def layer_norm(
        self,
        x: Tensor,
        other: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor | None, Scaled]:
        """Add a branch to the residual stream, if there is one, and normalize the rows of the sum.

        Args:
            x: Tokens ``[M, D]``, floating point.
            other: The branch ``[M, D]``, floating point, or None.
            weight: ``[D]``, any floating dtype, or None.
            bias: ``[D]``, any floating dtype, or None.
            eps: Added to the variance.
            dtype: A dtype in which the normalized rows are wanted too, or None.

        Returns:
            The sum ``[M, D]`` in the dtype of ``x``; it normalized ``[M, D]`` in ``dtype``, or None; and that scaled.
        """
        ...

    def activation(self, pre: Tensor, kind: str) -> Scaled:
        """Apply an MLP's activation.

        Args:
            pre: Its input ``[M, K]``, floating point.
            kind: ``"gelu"``, ``"gelu_tanh"``, ``"quick_gelu"``, ``"relu"`` or ``"silu"``.

        Returns:
            ``[M, K]``.
        """
        ...

    def activation_backward(self, d_act: Tensor, pre: Tensor, kind: str) -> Scaled:
        """Multiply a gradient by the activation's derivative.

        Args:
            d_act: Gradient of the activation's output ``[M, K]``, floating point.
            pre: The activation's input ``[M, K]``, same dtype.
            kind: ``"gelu"``, ``"gelu_tanh"``, ``"quick_gelu"``, ``"relu"`` or ``"silu"``.

        Returns:
            ``[M, K]``.
        """
        ...


@functools.cache
def frozen_rows(device: torch.device) -> FrozenRows:
    """Return what computes the row-wise parts on a device."""
    if device.type != "cuda":
        return aten
    from aim_adapters.ops.frozen import triton  # not at the top: it imports Triton

    return triton


@functools.cache
def scaled_rows(device: torch.device) -> ScaledRows:
    """Return what computes the row-wise parts that write float8 on a device."""
    if device.type != "cuda":
        return aten_fp8
    from aim_adapters.ops.frozen import triton_fp8  # not at the top: it imports Triton

    return triton_fp8
