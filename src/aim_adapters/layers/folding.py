"""Linear adapters with an inner skip folded into the linear layer in front of them.

Of a layer ``W a + b``, a factor ``g`` behind it (LayerScale) and an adapter ``o + U (D o + d) + u``, with
``o = g * (W a + b)``, the whole is ``(I + U D) (g * W) a + (I + U D) (g * b) + U d + u``: again one linear layer.
"""

from __future__ import annotations

import torch
from torch import Tensor


def folded_weight(weight: Tensor, down: Tensor, up: Tensor, gamma: Tensor | None = None) -> Tensor:
    """Return the weight of the layer that an adapter is folded into, computed in float32 or better.

    Args:
        weight: ``[D, K]``, floating point.
        down: The adapter's down-projection ``[W, D]``.
        up: The adapter's up-projection ``[D, W]``.
        gamma: Factor between the two ``[D]``, or None.

    Returns:
        ``[D, K]`` in the dtype of ``weight``.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    scaled = weight.to(wide) if gamma is None else weight.to(wide) * gamma.to(wide)[:, None]
    return (scaled + up.to(wide) @ (down.to(wide) @ scaled)).to(weight.dtype)


def folded_bias(
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    bias: Tensor | None = None,
    gamma: Tensor | None = None,
) -> Tensor:
    """Return the bias of the layer that an adapter is folded into, computed in float32 or better.

    Args:
        down: The adapter's down-projection ``[W, D]``, floating point.
        down_bias: Its bias ``[W]``.
        up: The adapter's up-projection ``[D, W]``.
        up_bias: Its bias ``[D]``.
        bias: The layer's ``[D]``, or None.
        gamma: Factor between the two ``[D]``, or None.

    Returns:
        ``[D]`` in the dtype of ``bias``, or of the adapter.
    """
    dtype = up.dtype if bias is None else bias.dtype
    wide = torch.promote_types(dtype, torch.float32)
    scaled = torch.zeros_like(up_bias, dtype=wide) if bias is None else bias.to(wide)
    if gamma is not None:
        scaled = scaled * gamma.to(wide)
    hidden = down.to(wide) @ scaled + down_bias.to(wide)  # [W]
    return (scaled + up.to(wide) @ hidden + up_bias.to(wide)).to(dtype)
