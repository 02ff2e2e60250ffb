"""What spatial attention reads of the places of its tokens, as a fused branch takes it: rotary positions and biases."""

from __future__ import annotations

from typing import Any

from aim_adapters.anatomy import Positions
from aim_adapters.ops.branches import PositionTensors, WindowTensors

PLACED = "its spatial attention knows positions or masks"


def read_positions(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Positions | str | None:
    """Return what a block's spatial attention reads of places, None for nothing, or why it must run as modules.

    Args:
        block: An adapted block.
        args: The further arguments that it was called with.
        kwargs: The same by name.
    """
    read = block.aim_spec.positions
    if read is None or block.aim.root_state.execution.fused is False:
        return PLACED if any(argument is not None for argument in (*args, *kwargs.values())) else None
    found: Positions | str | None = read(block, *args, **kwargs)
    return found


def place_tensors(positions: Positions) -> tuple[WindowTensors | None, PositionTensors | None]:
    """Return positions as the tensors of a branch: a bias, for which a frame is one window, and angles."""
    windows = None if positions.bias is None else WindowTensors(positions.bias)
    turned = positions.sin is not None and positions.cos is not None
    return windows, PositionTensors(positions.sin, positions.cos) if turned else None  # type: ignore[arg-type]


def unfit_places(places: Positions, tokens: int, heads: int, width: int) -> str | None:
    """Return why positions cannot be computed fused, or None if they can."""
    if places.bias is not None and tuple(places.bias.shape) != (heads, tokens, tokens):
        return f"its position bias is {list(places.bias.shape)}, not [H, N, N] = {[heads, tokens, tokens]}"
    for angles in (places.sin, places.cos):
        if angles is None:
            continue
        of_heads = angles.ndim == 3 and angles.shape[0] == heads
        if width % 2 or angles.shape[-1] != width or angles.shape[-2] > tokens or not (angles.ndim == 2 or of_heads):
            return f"its rotary positions are {list(angles.shape)}, for {tokens} tokens and {heads} heads of {width}"
    return None
