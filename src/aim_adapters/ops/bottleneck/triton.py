"""Compute the parts of an adapter by Triton kernels, for float32, bfloat16 and float16; they are deterministic."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from triton import cdiv

from aim_adapters.errors import UnsupportedKernelError
from aim_adapters.ops.bottleneck import kernels, tiles

# float32 on the matrix units of NVIDIA's GPUs: three products of parts that they hold exactly. AMD's compiler refuses
# these words, even for half precision, which ignores them.
_HALF, _EXACT = ("ieee", "ieee") if torch.version.hip is not None else ("tf32", "tf32x3")
_LEAST_SHARED_MEMORY = (64 if torch.version.hip is not None else 99) * 1024  # where PyTorch does not tell it


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

    All tensors contiguous.

    Args:
        pre: What the down-projection gave ``[M, W]``, floating point.
        up_weight: ``[D, W]``, same dtype.
        up_bias: ``[D]``, same dtype.
        residual: ``[M, D]``, float32 or the dtype of ``pre``.
        other: A second summand ``[M, D]``, same dtype as ``pre``, or None.
        factor: Stochastic depth of each clip ``[clips]``, float32, or None for 1.
        rows_per_factor: Rows of a clip.
        scale: Factor on the branch.

    Returns:
        ``[M, D]`` in the dtype of ``residual``.

    Raises:
        UnsupportedKernelError: The hidden layer does not fit in the device's shared memory.
    """
    rows, width = residual.shape
    tile = _fitting(tiles.up_add(pre.shape[1], pre.dtype.itemsize, shared_memory(pre.device)), pre)
    out = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    with torch.cuda.device_of(pre):
        kernels.up_add_kernel[(cdiv(rows, tile.rows),)](
            pre, up_weight, up_bias, residual, other, factor, out, rows, rows_per_factor, scale,
            D=width, HAS_OTHER=other is not None, STEPS=cdiv(width, tile.columns), **_options(tile, pre, factor),
        )  # fmt: skip
    return out


def down_backward(
    d_out: Tensor,
    up_weight: Tensor,
    pre: Tensor,
    factor: Tensor | None,
    rows_per_factor: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Carry a gradient through the up-projection and the GELU; the hidden layer is computed again.

    All tensors contiguous.

    Args:
        d_out: Gradient of what `up_add` returned ``[M, D]``, float32 or the dtype of ``pre``.
        up_weight: ``[D, W]``, same dtype as ``pre``.
        pre: What the down-projection gave ``[M, W]``, floating point.
        factor: Stochastic depth of each clip ``[clips]``, float32, or None for 1.
        rows_per_factor: Rows of a clip.
        scale: Factor on the branch.

    Returns:
        The gradient of ``pre`` ``[M, W]``; ``f * gelu(pre)`` ``[M, W]``, of which ``d_out^T`` times it is the gradient
        of ``up_weight``; the gradients of ``up_bias`` ``[D]`` and of the down-projection's bias ``[W]``, these two
        float32.

    Raises:
        UnsupportedKernelError: The hidden layer does not fit in the device's shared memory.
    """
    (rows, width), units = d_out.shape, pre.shape[1]
    tile = _fitting(tiles.down_backward(units, pre.dtype.itemsize, shared_memory(pre.device)), pre)
    count, parts = cdiv(rows, tile.rows), tiles.parts(units)
    d_pre, hidden = (torch.empty(pre.shape, dtype=pre.dtype, device=pre.device) for _ in range(2))
    sums, d_up_bias, d_down_bias = (
        torch.empty(shape, dtype=torch.float32, device=pre.device) for shape in ((count, width + units), width, units)
    )
    with torch.cuda.device_of(pre):
        kernels.down_backward_kernel[(count * parts,)](
            d_out, up_weight, pre, factor, d_pre, hidden, sums, rows, rows_per_factor, scale,
            D=width, PARTS=parts, **_options(tile, pre, factor),
        )  # fmt: skip
        kernels.add_tiles_kernel[(cdiv(width + units, 32),)](
            sums, d_up_bias, d_down_bias, count, D=width, W=units, ROWS=32, COLUMNS=32, num_warps=4
        )
    return d_pre, hidden, d_up_bias, d_down_bias


def shared_memory(device: torch.device) -> int:
    """Return the bytes of shared memory that a program may use on a device.

    Args:
        device: A GPU, or the CPU on which kernels are interpreted.
    """
    return 2**20 if device.type == "cpu" else _of_gpu(device)


@functools.cache
def _of_gpu(device: torch.device) -> int:
    properties = torch.cuda.get_device_properties(device)
    # PyTorch 2.6, and 2.11 for ROCm, do not have it.
    return int(getattr(properties, "shared_memory_per_block_optin", _LEAST_SHARED_MEMORY))


def _fitting(tile: tiles.Tile | None, pre: Tensor) -> tiles.Tile:
    if tile is None:
        why = tiles.unfit(pre.shape[1], pre.dtype.itemsize, shared_memory(pre.device))
        raise UnsupportedKernelError(f"{why}; run it by PyTorch's own operators, or make it narrower")
    return tile


def _options(tile: tiles.Tile, pre: Tensor, factor: Tensor | None) -> dict[str, Any]:
    exact = pre.dtype.itemsize == 4
    return {
        "W": pre.shape[1],
        "UNITS": tile.units,
        "PIECES": tile.pieces,
        "HAS_FACTOR": factor is not None,
        "EXACT": exact,
        "PRECISION": _EXACT if exact else _HALF,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
