"""Validate the arguments of temporal attention and choose its implementation."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from aim_adapters.errors import ConfigError, InputError, UnsupportedKernelError
from aim_adapters.ops.temporal_attention import reference, sdpa

_IMPLEMENTATIONS = {"sdpa": sdpa.temporal_attention, "eager": reference.temporal_attention}


class Choice(NamedTuple):
    """An implementation and the reason it was chosen."""

    implementation: str
    reason: str


def choose(requested: str) -> Choice:
    """Pick the implementation.

    ``"auto"`` may fall back; a name never does.

    Args:
        requested: ``"auto"``, ``"sdpa"``, ``"eager"`` or ``"triton"``.

    Raises:
        ConfigError: The name is unknown.
        UnsupportedKernelError: The implementation cannot run here.
    """
    if requested == "auto":
        return Choice("sdpa", "fused by PyTorch on every device")
    if requested in _IMPLEMENTATIONS:
        return Choice(requested, "asked for by name")
    if requested == "triton":
        raise UnsupportedKernelError(
            "attention='triton' was asked for, but this version has no Triton kernel; use 'auto', 'sdpa' or 'eager'"
        )
    raise ConfigError(f"attention must be 'auto', 'triton', 'sdpa' or 'eager', got {requested!r}")


def temporal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_frames: int,
    scale: float | None = None,
    bias: Tensor | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Let every token attend to the tokens at its own position in all frames of its clip.

    T-MSA of Eq. 3. Any strides: the views of a packed ``[B*T, N, 3, H, d]`` projection need no copy first.

    Args:
        q: Queries ``[B*T, N, H, d]``, floating point.
        k: Keys ``[B*T, N, G, d]``, same dtype and device; G key/value heads, H a multiple of G.
        v: Values ``[B*T, N, G, d]``.
        num_frames: T >= 1.
        scale: Factor on the scores; ``d ** -0.5`` when None.
        bias: Added to the scores before the softmax, ``[H, T, T]``, or None.
        implementation: ``"auto"``, ``"sdpa"`` or ``"eager"``.

    Returns:
        ``[B*T, N, H, d]`` in the dtype of ``q``.

    Raises:
        InputError: Shapes, dtypes or the number of frames do not fit together.
        ConfigError: The implementation's name is unknown.
        UnsupportedKernelError: The named implementation cannot run here.
    """
    _validate(q, k, v, num_frames, bias)
    run = _IMPLEMENTATIONS[choose(implementation).implementation]
    return run(q, k, v, num_frames=num_frames, scale=_scale(q, scale), bias=bias)


def temporal_attention_weights(
    q: Tensor, k: Tensor, *, num_frames: int, scale: float | None = None, bias: Tensor | None = None
) -> Tensor:
    """Return the attention weights themselves, by the oracle.

    Args:
        q: Queries ``[B*T, N, H, d]``, floating point.
        k: Keys ``[B*T, N, G, d]``.
        num_frames: T >= 1.
        scale: Factor on the scores; ``d ** -0.5`` when None.
        bias: Added to the scores before the softmax, ``[H, T, T]``, or None.

    Returns:
        Weights ``[B, N, H, T, T]``; rows are query frames and sum to 1.

    Raises:
        InputError: Shapes, dtypes or the number of frames do not fit together.
    """
    _validate(q, k, k, num_frames, bias)
    return reference.attention_weights(q, k, num_frames=num_frames, scale=_scale(q, scale), bias=bias)


def _scale(q: Tensor, scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def _validate(q: Tensor, k: Tensor, v: Tensor, num_frames: int, bias: Tensor | None) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise InputError(f"temporal attention takes q [B*T, N, H, d] and k, v [B*T, N, G, d], got {shapes}")
    fits = q.shape[:2] == k.shape[:2] and q.shape[3] == k.shape[3]
    if not fits or k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise InputError(
            f"q, k and v must agree in frames, tokens and head dim, and q's heads be a multiple of k's, got {shapes}"
        )
    if not (q.dtype == k.dtype == v.dtype and q.is_floating_point()):
        raise InputError(f"q, k and v must share one floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if num_frames < 1 or q.shape[0] % num_frames:
        raise InputError(f"the first dimension must be a multiple of num_frames={num_frames}, got {shapes}")
    if bias is not None and tuple(bias.shape) != (q.shape[2], num_frames, num_frames):
        raise InputError(
            f"bias must be [H, T, T] = [{q.shape[2]}, {num_frames}, {num_frames}], got {tuple(bias.shape)}"
        )
