"""What float8 products of frozen weights need: of the machine, the dtype and the widths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aim_adapters.ops.device import triton_missing
from aim_adapters.ops.frozen import Scaled, product

_MOST = 16384  # sides of a weight


def fp8_missing() -> str | None:
    """Return why this machine's GPU cannot multiply float8, or None.

    Looked up once, at the latest when float8 is asked for: ``torch.compile`` cannot trace how.
    """
    if not torch.cuda.is_available():
        return "float8 needs a CUDA device"
    if not _fp8_missing:
        _fp8_missing.append(_why_missing())
    return _fp8_missing[0]


_fp8_missing: list[str | None] = []


def _why_missing() -> str | None:
    capability = torch.cuda.get_device_capability()
    if torch.version.hip is not None or capability < (8, 9):
        return "float8 needs an NVIDIA GPU of compute capability 8.9 or more (Ada, Hopper)"
    # Which GPUs have it differs among versions of PyTorch, of CUDA, and systems: PyTorch 2.6 has it on Hopper alone.
    try:
        _multiply("cuda")
    except RuntimeError as error:
        return (
            f"PyTorch {torch.__version__} has no float8 product scaled by row for compute capability "
            f"{capability[0]}.{capability[1]}; on Ada it needs 2.7 and Linux: {str(error).splitlines()[0]}"
        )
    return None


def _multiply(device: str) -> Tensor:
    """Multiply two matrices of ones in float8, as products with frozen weights do."""
    ones = Scaled(torch.ones(16, 16, device=device).to(torch.float8_e4m3fn), torch.ones(16, 1, device=device))
    return product(ones, ones, None, torch.bfloat16)


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
