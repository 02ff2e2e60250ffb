"""What normalizes and rotates queries and keys: the protocol, and the choice by device."""

from __future__ import annotations

import functools
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from aim_adapters.ops.heads import aten


class Heads(NamedTuple):
    """What queries and keys go through between projection and attention; frozen.

    Attributes:
        norm: Kind of their norms over d, which come first: ``"layer"``, ``"rms"`` or ``""`` for none.
        eps: Of the norms.
        q_weight: Of the queries' norm ``[d]``, any floating dtype, or None.
        q_bias: ``[d]``, or None.
        k_weight: Of the keys' norm ``[d]``, or None.
        k_bias: ``[d]``, or None.
        rotary: Which features are rotated together: ``"interleaved"``, 2i and 2i + 1; ``"halves"``, i and i + d/2;
            ``""``: none.
        sin: Sines of the angles of the last N' tokens, any floating dtype, ``[N', d]`` or ``[H, N', d]``, elements of a
            row side by side; None without rotation.
        cos: Their cosines, the same.
    """

    norm: str = ""
    eps: float = 0.0
    q_weight: Tensor | None = None
    q_bias: Tensor | None = None
    k_weight: Tensor | None = None
    k_bias: Tensor | None = None
    rotary: str = ""
    sin: Tensor | None = None
    cos: Tensor | None = None

    @property
    def rotated(self) -> int:
        """Return N', the number of tokens that are rotated."""
        return 0 if self.sin is None else self.sin.shape[-2]


class HeadRows(Protocol):
    """The way of queries and keys from projection to attention, and of their gradients back. d is even.

    Triton's kernels take no float64. What is computed is float32, or float64 for float64.
    """

    def prepare(self, qkv: Tensor, heads: Heads) -> Tensor:
        """Normalize and rotate queries and keys.

        Args:
            qkv: ``[F, N, 3, H, d]``, contiguous, floating point; overwritten unless there are norms.
            heads: What they go through.

        Returns:
            ``qkv`` as attention reads it: a new tensor if there are norms, whose gradients need what they read; else
            ``qkv`` itself.
        """
        ...

    def prepare_backward(self, d_qkv: Tensor, qkv: Tensor, heads: Heads) -> None:
        """Turn the gradient of what `prepare` returned into that of what it was given, in place.

        Args:
            d_qkv: ``[F, N, 3, H, d]``, contiguous; overwritten.
            qkv: What `prepare` was given, same dtype; not read without norms.
            heads: What they went through.
        """
        ...


@functools.cache
def head_rows(device: torch.device) -> HeadRows:
    """Return what normalizes and rotates queries and keys on a device."""
    if device.type != "cuda":
        return aten
    from aim_adapters.ops.heads import triton  # not at the top: it imports Triton

    return triton
