"""The arithmetic of a wrapped model's forward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import nn

from aim_adapters.arguments import read_items, require_integer, shown
from aim_adapters.core import WrappedModel, by_modules, only_root
from aim_adapters.errors import ConfigError

_SIZE = "image_size must be a number of pixels, or (height, width)"


class FlopCount(NamedTuple):
    """The arithmetic of one clip's forward pass: matrix products, convolutions and attention.

    The "GFLOPs" of the paper's tables are multiply-accumulates times views: ``gmacs * views``.

    Attributes:
        gmacs: Multiply-accumulates, in 10⁹.
        gflops: Floating-point operations, two per multiply-accumulate, in 10⁹.
    """

    gmacs: float
    gflops: float


def count_flops(model: nn.Module, *, image_size: tuple[int, int] | int | None = None) -> FlopCount:
    """Count the arithmetic of one clip's forward pass, without running it.

    Args:
        model: A wrapped model. In a whole CLIP model, only the image tower is counted.
        image_size: Height and width of a frame in pixels; by default the base model's own.

    Returns:
        Multiply-accumulates and floating-point operations, in 10⁹.

    Raises:
        TypeError: ``model`` is not a module.
        StateError: The model is not wrapped, or holds several wrapped models.
        ConfigError: ``image_size`` is no size that the base model takes, or is not given though the base model does
            not know its own.
    """
    return count_root_flops(only_root(model), image_size=image_size)


def count_root_flops(wrapped: WrappedModel, *, image_size: tuple[int, int] | int | None = None) -> FlopCount:
    """Count as `count_flops` does, for a wrapped model that was found already.

    Args:
        wrapped: The wrapped model.
        image_size: Height and width of a frame in pixels; by default the base model's own.

    Raises:
        ConfigError: As `count_flops`.
    """
    # Imported here: counting is rare, and these take longer to import than the rest of this package.
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    root, state, anatomy = wrapped.root, wrapped.state, wrapped.state.anatomy
    size = anatomy.image_size if image_size is None else image_size
    if size is None:
        raise ConfigError(f"this {type(root).__name__} does not know its image size; pass image_size=(height, width)")
    height, width = _height_and_width(size)
    parameter = next(root.parameters())
    shape = (state.config.num_frames, anatomy.in_channels, height, width)  # one clip's flat frames: no layout to guess
    # Branches run as modules, as fused ones skip products that the paper counts. Attention runs as matrix products:
    # the fused kernels of a CPU have no FLOP formula. The convolution over frames runs by its kernel, which has one, or
    # as a sum of products, for which PyTorch has none.
    with (
        by_modules(state),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FakeTensorMode(allow_non_fake_inputs=True),
        FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addcmul: _flops_of_addcmul}) as counter,
    ):
        try:
            root(torch.empty(shape, dtype=parameter.dtype, device=parameter.device))
        except (AssertionError, RuntimeError, ValueError) as error:
            if image_size is None:
                raise
            raise ConfigError(f"image_size={height, width} is none that this model takes: {error!s:.300}") from error
    flops = counter.get_total_flops()
    return FlopCount(gmacs=flops / 2e9, gflops=flops / 1e9)


def _flops_of_addcmul(*shapes: Any, out_shape: Sequence[int], **_: Any) -> int:
    return 2 * math.prod(out_shape)


def _height_and_width(size: object) -> tuple[int, int]:
    items = [size, size] if isinstance(size, Integral) else read_items(size, _SIZE)
    if len(items) != 2:
        raise ConfigError(f"{_SIZE}, got {shown(size)}")
    height, width = (require_integer("image_size", item, low=1, high=2**14) for item in items)
    return height, width
