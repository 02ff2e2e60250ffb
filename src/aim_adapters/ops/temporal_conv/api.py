"""Entry to convolution over frames: validation of its arguments and choice of its implementation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from aim_adapters.errors import InputError
from aim_adapters.ops.choice import Choice, automatic, by_name
from aim_adapters.ops.device import exporting, triton_before, triton_missing
from aim_adapters.ops.temporal_conv import reference

# What the Triton kernels support.
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_MAX_KERNEL = 31


class Case(NamedTuple):
    """Facts that the choice of an implementation depends on.

    Args:
        device: Type of the device: ``"cuda"``, ``"cpu"``.
        dtype: Dtype of the features.
        kernel: K.
        missing: Why Triton cannot run the kernels here at all, or None if it can.
        exporting: Whether the model is being exported, to run where our operators may not be known.
    """

    device: str
    dtype: torch.dtype
    kernel: int
    missing: str | None
    exporting: bool = False


def choose(requested: str, case: Case) -> Choice:
    """Choose the implementation.

    ``"auto"`` may fall back; a name never does.

    Args:
        requested: ``"auto"``, ``"triton"`` or ``"eager"``.
        case: Facts of the call.

    Raises:
        ConfigError: The name is unknown.
        UnsupportedKernelError: The named implementation cannot run here, or cannot compute this.
    """
    named = by_name(requested, lambda: _unsupported(case), setting="implementation", plain=("eager",))
    if named is not None:
        return named
    return automatic(_unsupported(case), case.device, exporting=case.exporting, plain="eager")


def _unsupported(case: Case) -> str | None:
    """Return why the Triton kernels cannot compute this, or None if they can."""
    if case.missing is not None:
        return case.missing
    if case.dtype not in _DTYPES:
        return f"its kernels compute in {', '.join(map(str, _DTYPES))}, got {case.dtype}"
    if case.kernel > _MAX_KERNEL:
        return f"its kernels take up to {_MAX_KERNEL} taps, got {case.kernel}"
    return None


def case_of(device: str, dtype: torch.dtype, kernel: int) -> Case:
    """Gather the facts that the choice of an implementation depends on.

    Args:
        device: Type of the device.
        dtype: Dtype of the features.
        kernel: K.
    """
    missing = triton_missing(device) or ("its kernels need Triton 3.3" if triton_before(3, 3) else None)
    return Case(device, dtype, kernel, missing, exporting())


def temporal_conv_gelu(
    h: Tensor, weight: Tensor, bias: Tensor, *, num_frames: int, implementation: str = "auto"
) -> Tensor:
    """Convolve each feature of each token over the frames of its clip, and apply exact GELU.

    ``gelu(bias[w] + sum_k weight[w, k] * h[t + k - K//2, w])``, with zeros beyond the ends of a clip: the depthwise
    convolution of ST-Adapter (NeurIPS 2022) along time.

    Args:
        h: Features ``[B*T, ..., W]``, floating point.
        weight: ``[W, K]``, any floating dtype, K odd.
        bias: ``[W]``, any floating dtype.
        num_frames: T >= 1.
        implementation: ``"auto"``, ``"triton"`` or ``"eager"``.

    Returns:
        ``[B*T, ..., W]`` in the dtype of ``h``.

    Raises:
        InputError: Shapes, dtypes, devices or the number of frames do not fit together.
        ConfigError: The implementation's name is unknown.
        UnsupportedKernelError: The named implementation cannot run here, or cannot compute this.
    """
    _validate(h, weight, bias, num_frames)
    if choose(implementation, case_of(h.device.type, h.dtype, weight.shape[1])).implementation == "triton":
        from aim_adapters.ops.temporal_conv import triton  # not at the top: it imports Triton

        return triton.temporal_conv_gelu(h, weight, bias, num_frames=num_frames)
    return reference.temporal_conv_gelu(h, weight, bias, num_frames=num_frames)


def _validate(h: Tensor, weight: Tensor, bias: Tensor, num_frames: int) -> None:
    shapes = f"h {tuple(h.shape)}, weight {tuple(weight.shape)}, bias {tuple(bias.shape)}"
    fits = h.ndim >= 2 and weight.ndim == 2 and h.shape[-1:] == weight.shape[:1] == bias.shape
    if not fits or weight.shape[1] % 2 == 0:
        raise InputError(
            f"a convolution over frames takes h [B*T, ..., W], weight [W, K] with K odd and bias [W], got {shapes}"
        )
    if not all(x.is_floating_point() for x in (h, weight, bias)):
        raise InputError(f"h, weight and bias must be floating point, got {h.dtype}, {weight.dtype}, {bias.dtype}")
    if not h.device == weight.device == bias.device:
        raise InputError(f"h, weight and bias must be on one device, got {h.device}, {weight.device}, {bias.device}")
    if num_frames < 1 or h.shape[0] % num_frames:
        raise InputError(
            f"the first dimension must be a multiple of num_frames={num_frames}, got {shapes}; pass whole clips"
        )
