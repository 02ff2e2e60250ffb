"""Tables of colors for maps of numbers."""

from __future__ import annotations

import torch
from torch import Tensor

# Nine colors each, evenly spaced; those between are mixed. The first two grow lighter with the value, also for color
# blind eyes and in gray; "difference" has a light gray in its middle, for zero.
_COLORS = {
    "inferno": "000004 210c4a 56106e 89226a bb3654 e35932 f98c0a f9c932 fcffa4",
    "viridis": "440154 472d7b 3b528b 2c728e 21908c 27ad81 5cc863 aadc32 fde725",
    "difference": "3b4cc0 6282ea 8db0fe b8d0f9 dcdcdc f4c5ad f49a7b de614d b40426",
}
COLORMAPS = tuple(_COLORS)


def colors_of(values: Tensor, colormap: str) -> Tensor:
    """Return the colors of numbers.

    Args:
        values: Floating point in [0, 1], of any shape.
        colormap: One of `COLORMAPS`.

    Returns:
        RGB from 0 to 255, float32 ``[..., 3]``.
    """
    table = torch.tensor([list(bytes.fromhex(color)) for color in _COLORS[colormap].split()], device=values.device)
    place = values.float() * (len(table) - 1)
    below = place.floor().long().clamp(0, len(table) - 2)
    return torch.lerp(table[below].float(), table[below + 1].float(), (place - below)[..., None])
