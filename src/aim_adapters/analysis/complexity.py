"""Count the arithmetic of a wrapped model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from aim_adapters.core import by_modules, only_root
from aim_adapters.errors import ConfigError


class FlopCount(NamedTuple):
    """Arithmetic of one clip's forward pass: matrix products, convolutions and attention.

    The "GFLOPs" of the paper's tables are multiply-accumulates times views: ``gmacs * views``.
    """

    gmacs: float
    gflops: float


def count_flops(model: nn.Module, *, image_size: tuple[int, int] | int | None = None) -> FlopCount:
    """Count what one clip costs in a forward pass, without running it.

    Args:
        model: A wrapped model; of a whole CLIP model, the image tower is counted.
        image_size: Height and width of a frame in pixels; by default the base model's own.

    Returns:
        Multiply-accumulates and floating-point operations (two each), in 10⁹.

    Raises:
        StateError: The model is not wrapped, or holds several wrapped models.
        ConfigError: ``image_size`` is not given and the base model does not know its own.
    """
    # Not at the top: counting is rare, and these take longer to import than the rest of this package.
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    _, root, state = only_root(model)
    anatomy = state.anatomy
    size = anatomy.image_size if image_size is None else image_size
    if size is None:
        raise ConfigError(f"this {type(root).__name__} does not know its image size; pass image_size=(height, width)")
    height, width = (size, size) if isinstance(size, int) else size
    parameter = next(root.parameters())
    shape = (state.config.num_frames, anatomy.in_channels, height, width)  # flat: one clip, no layout to guess
    # Fused branches leave products out that the paper counts. The fused kernels of a CPU have no FLOP formula; the
    # plain products they stand for have.
    with (
        by_modules(state),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FakeTensorMode(allow_non_fake_inputs=True),
        FlopCounterMode(display=False) as counter,
    ):
        root(torch.empty(shape, dtype=parameter.dtype, device=parameter.device))
    flops = counter.get_total_flops()
    return FlopCount(gmacs=flops / 2e9, gflops=flops / 1e9)
