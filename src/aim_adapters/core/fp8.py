"""What float8 products of frozen weights need: of the machine, the dtype and the widths."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aim_adapters.ops.device import triton_missing

_MOST = 16384  # sides of a weight


def fp8_missing() -> str | None:
    """Return why this machine's GPU cannot multiply float8, or None.

    Looked up once, at the latest when float8 is asked for: ``torch.compile`` cannot trace how.
    """
    if not torch.cuda.is_available():
        return "float8 needs a CUDA device"
    if not _fp8_missing:
        fits = torch.version.hip is None and torch.cuda.get_device_capability() >= (8, 9)
        _fp8_missing.append(
            None if fits else "float8 needs an NVIDIA GPU of compute capability 8.9 or more (Ada, Hopper)"
        )
    return _fp8_missing[0]


_fp8_missing: list[str | None] = []


def unfit_for_fp8(device: torch.device, dtype: torch.dtype, shape: Sequence[int]) -> str | None:
    """Return why products with a frozen weight cannot be computed in float8, or None if they can.

    Args:
        device: Where the tokens are.
        dtype: What their products return.
        shape: Of the weight.
    """
    if device.type != "cuda":  # where kernels are interpreted, so is float8: for tests
        return triton_missing(device.type) and f"float8 needs a CUDA device, got {device.type}"
    if (missing := fp8_missing()) is not None:
        return missing
    if dtype != torch.bfloat16:
        return f"float8 products return torch.bfloat16, got {dtype}; use torch.autocast"
    if any(side % 16 or side > _MOST for side in shape):
        return f"float8 needs widths that are multiples of 16 up to {_MOST}, got {tuple(shape)}"
    return None
