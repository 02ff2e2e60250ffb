"""Entry to temporal attention: validation of its arguments and choice of its implementation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from aim_adapters.errors import InputError
from aim_adapters.ops.choice import Choice, automatic, by_name
from aim_adapters.ops.device import exporting, tensor_memory_crowded, triton_missing
from aim_adapters.ops.device import shared_memory as device_memory
from aim_adapters.ops.temporal_attention import reference, sdpa
from aim_adapters.ops.temporal_attention.tiles import shared_memory, smallest_tile

_PLAIN = {"sdpa": sdpa.temporal_attention, "eager": reference.temporal_attention}
# What the Triton kernels support.
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_MAX_FRAMES, _MAX_HEAD_DIM = 128, 128
# Bytes of a row of scores up to which the gradient of a bias fits in crowded tensor memory.
_MAX_CROWDED_ROW = 128


class Case(NamedTuple):
    """Facts that the choice of an implementation depends on.

    Args:
        device: Type of the device: ``"cuda"``, ``"cpu"``.
        dtype: Dtype of queries, keys and values.
        head_dim: d.
        num_frames: T.
        missing: Why Triton cannot run here at all, or None if it can.
        shared_memory: Bytes of shared memory that a kernel may use.
        exporting: Whether the model is being exported, to run where our operators may not be known.
        biased: Whether a bias is added to the scores.
        crowded: Whether Triton keeps more in tensor memory than has to be there.
    """

    device: str
    dtype: torch.dtype
    head_dim: int
    num_frames: int
    missing: str | None
    shared_memory: int = 2**20
    exporting: bool = False
    biased: bool = False
    crowded: bool = False


def choose(requested: str, case: Case | None = None) -> Choice:
    """Choose the implementation.

    ``"auto"`` may fall back; a name never does.

    Args:
        requested: ``"auto"``, ``"triton"``, ``"sdpa"`` or ``"eager"``.
        case: Facts of the call, or None while only the name is known.

    Raises:
        ConfigError: The name is unknown.
        UnsupportedKernelError: The named implementation cannot run here, or cannot compute this.
    """
    named = by_name(requested, lambda: triton_missing("any") if case is None else _unsupported(case))
    if named is not None:
        return named
    if case is None:
        triton_missing("any")  # looked up here, before torch.compile would trace it
        return Choice("auto", "chosen at each call")
    if case.device == "cpu":
        return Choice("eager", "as fast as SDPA on a CPU for the frames of a clip")
    return automatic(_unsupported(case), case.device, exporting=case.exporting)


def _unsupported(case: Case) -> str | None:
    """Return why the Triton kernels cannot compute this, or None if they can."""
    if case.missing is not None:
        return case.missing
    if case.dtype not in _DTYPES:
        return f"its kernels compute in {', '.join(map(str, _DTYPES))}, got {case.dtype}"
    if case.head_dim > _MAX_HEAD_DIM:
        return f"its kernels take heads up to {_MAX_HEAD_DIM} wide, got {case.head_dim}"
    if case.num_frames > _MAX_FRAMES:
        return f"its kernels take up to {_MAX_FRAMES} frames, got {case.num_frames}"
    needed = shared_memory(case.num_frames, case.head_dim, case.dtype.itemsize)
    if needed > case.shared_memory:
        return (
            f"a tile of {case.num_frames} frames of {case.dtype} takes {needed // 1024} KiB of shared memory, this "
            f"device has {case.shared_memory // 1024} KiB"
        )
    if case.crowded and case.biased and smallest_tile(case.num_frames) * case.dtype.itemsize > _MAX_CROWDED_ROW:
        return (
            f"the gradient of a bias over {case.num_frames} frames of {case.dtype} takes more tensor memory than this "
            "device has, before Triton 3.8"
        )
    return None


def case_of(device: str, dtype: torch.dtype, head_dim: int, num_frames: int, *, biased: bool = False) -> Case:
    """Gather the facts that the choice of an implementation depends on.

    Args:
        device: Type of the device.
        dtype: Dtype of queries, keys and values.
        head_dim: d.
        num_frames: T.
        biased: Whether a bias is added to the scores.
    """
    missing, memory, crowded = triton_missing(device), device_memory(device), tensor_memory_crowded(device)
    return Case(device, dtype, head_dim, num_frames, missing, memory, exporting(), biased, crowded)


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
        implementation: ``"auto"``, ``"triton"``, ``"sdpa"`` or ``"eager"``.

    Returns:
        ``[B*T, N, H, d]`` in the dtype of ``q``.

    Raises:
        InputError: Shapes, dtypes, devices or the number of frames do not fit together.
        ConfigError: The implementation's name is unknown.
        UnsupportedKernelError: The named implementation cannot run here, or cannot compute this.
    """
    _validate(q, k, v, num_frames, bias)
    case = case_of(q.device.type, q.dtype, q.shape[-1], num_frames, biased=bias is not None)
    name = choose(implementation, case).implementation
    if name == "triton":
        from aim_adapters.ops.temporal_attention import triton  # not at the top: it imports Triton

        return triton.temporal_attention(q, k, v, num_frames=num_frames, scale=_scale(q, scale), bias=bias)
    return _PLAIN[name](q, k, v, num_frames=num_frames, scale=_scale(q, scale), bias=bias)


def temporal_attention_packed(
    qkv: Tensor,
    *,
    num_frames: int,
    scale: float | None = None,
    bias: Tensor | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Compute `temporal_attention` of one packed projection, whose gradient a kernel returns packed.

    Args:
        qkv: Queries, keys and values ``[B*T, N, 3, H, d]``, floating point.
        num_frames: T >= 1.
        scale: Factor on the scores; ``d ** -0.5`` when None.
        bias: Added to the scores before the softmax, ``[H, T, T]``, or None.
        implementation: ``"auto"``, ``"triton"``, ``"sdpa"`` or ``"eager"``.

    Returns:
        ``[B*T, N, H, d]`` in the dtype of ``qkv``.

    Raises:
        InputError: Shapes, dtypes, devices or the number of frames do not fit together.
        ConfigError: The implementation's name is unknown.
        UnsupportedKernelError: The named implementation cannot run here, or cannot compute this.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise InputError(f"a packed projection is [B*T, N, 3, H, d], got {tuple(qkv.shape)}")
    q, k, v = qkv.unbind(2)
    case = case_of(q.device.type, q.dtype, q.shape[-1], num_frames, biased=bias is not None)
    name = choose(implementation, case).implementation
    if name != "triton":
        return temporal_attention(q, k, v, num_frames=num_frames, scale=scale, bias=bias, implementation=name)
    _validate(q, k, v, num_frames, bias)
    from aim_adapters.ops.temporal_attention import triton  # not at the top: it imports Triton

    return triton.temporal_attention_packed(qkv, num_frames=num_frames, scale=_scale(q, scale), bias=bias)


def temporal_attention_weights(
    q: Tensor, k: Tensor, *, num_frames: int, scale: float | None = None, bias: Tensor | None = None
) -> Tensor:
    """Return the attention weights themselves, computed by the reference implementation.

    Args:
        q: Queries ``[B*T, N, H, d]``, floating point.
        k: Keys ``[B*T, N, G, d]``.
        num_frames: T >= 1.
        scale: Factor on the scores; ``d ** -0.5`` when None.
        bias: Added to the scores before the softmax, ``[H, T, T]``, or None.

    Returns:
        Weights ``[B, N, H, T, T]``; rows are query frames and sum to 1.

    Raises:
        InputError: Shapes, dtypes, devices or the number of frames do not fit together.
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
    others = (k, v) if bias is None else (k, v, bias)
    if any(x.device != q.device for x in others):
        raise InputError(
            f"q, k, v and bias must be on one device, got {', '.join(str(x.device) for x in (q, *others))}"
        )
    if num_frames < 1 or q.shape[0] % num_frames:
        raise InputError(
            f"the first dimension must be a multiple of num_frames={num_frames}, got {shapes}; pass whole clips"
        )
    if bias is not None and tuple(bias.shape) != (q.shape[2], num_frames, num_frames):
        raise InputError(
            f"bias must be [H, T, T] = [{q.shape[2]}, {num_frames}, {num_frames}], got {tuple(bias.shape)}"
        )
