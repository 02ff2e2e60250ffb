"""Inputs of spatial attention that the tests of its implementations share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LAYOUTS = ("packed", "tokens_first", "heads_first", "sliced", "apart")


@dataclass(frozen=True)
class Sizes:
    """Sizes of one call: F frames of N tokens, H heads of width d, W masks; or of ``cut`` windows of N by index."""

    frames: int = 2
    tokens: int = 5
    heads: int = 2
    dim: int = 16
    bias: bool = False
    windows: int = 0
    cut: int = 0

    @property
    def length(self) -> int:
        """Tokens of a frame."""
        return self.tokens * max(1, self.cut)


def projection(sizes: Sizes, layout: str = "packed", *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Make ``[F, N, 3, H, d]`` of some strides."""
    f, n, h, d = sizes.frames, sizes.length, sizes.heads, sizes.dim
    shape, order = {
        "packed": ((f, n, 3, h, d), (0, 1, 2, 3, 4)),
        "tokens_first": ((n, f, 3, h, d), (1, 0, 2, 3, 4)),
        "heads_first": ((f, h, n, 3, d), (0, 2, 3, 1, 4)),
        "sliced": ((f, n, 3, h, d + 3), (0, 1, 2, 3, 4)),
        "apart": ((f, n, 3, d, h), (0, 1, 2, 4, 3)),  # elements of a row do not lie together
    }[layout]
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return made.permute(order)[..., :d]


def added(sizes: Sizes, *, hidden: float = -100.0) -> tuple[Tensor | None, Tensor | None]:
    """Make the bias and the mask that the sizes ask for, float32; every token sees itself."""
    generator = torch.Generator().manual_seed(1)
    square = (sizes.tokens, sizes.tokens)
    bias = torch.randn(*square, sizes.heads, generator=generator).permute(2, 0, 1) if sizes.bias else None
    if not sizes.windows:
        return bias, None
    seen = torch.rand(sizes.windows, *square, generator=generator) > 0.4
    return bias, torch.where(seen | torch.eye(sizes.tokens, dtype=torch.bool), 0.0, hidden)


def index_of(sizes: Sizes) -> Tensor | None:
    """Make the index that the sizes ask for, int32 ``[cut, N]``: tokens in any order."""
    if not sizes.cut:
        return None
    order = torch.randperm(sizes.length, generator=torch.Generator().manual_seed(2))
    return order.int().view(sizes.cut, sizes.tokens)
