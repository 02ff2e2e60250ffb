"""Inputs of temporal attention that the tests of its implementations share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

LAYOUTS = ("packed", "separate", "transposed", "heads_first", "expanded", "sliced")


@dataclass(frozen=True)
class Sizes:
    """Sizes of one call: B clips, T frames, N tokens, H heads in ``groups`` key/value heads, of width d."""

    clips: int = 2
    frames: int = 3
    tokens: int = 4
    heads: int = 2
    groups: int = 2
    dim: int = 5


@st.composite
def sizes(draw: st.DrawFn) -> Sizes:
    small = st.integers(1, 4)
    groups = draw(st.integers(1, 2))
    heads = groups * draw(st.integers(1, 3))
    return Sizes(draw(small), draw(st.integers(1, 6)), draw(small), heads, groups, draw(st.integers(1, 9)))


def inputs(
    sizes: Sizes, layout: str = "separate", *, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[list[Tensor], list[Tensor]]:
    """Make leaves that require gradients, and q, k, v as views of them in the given layout.

    Returns:
        Leaves of any shape; and q ``[B*T, N, H, d]``, k and v ``[B*T, N, G, d]``.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, n, h, g, d = sizes.clips * sizes.frames, sizes.tokens, sizes.heads, sizes.groups, sizes.dim

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    if layout == "packed":
        packed = leaf(rows, n, h + 2 * g, d)
        return [packed], list(packed.split([h, g, g], dim=2))
    if layout == "transposed":  # tokens first, as in the [N, B*T, D] layout of some libraries
        leaves = [leaf(n, rows, count, d) for count in (h, g, g)]
        return leaves, [x.transpose(0, 1) for x in leaves]
    if layout == "heads_first":
        leaves = [leaf(rows, count, n, d) for count in (h, g, g)]
        return leaves, [x.transpose(1, 2) for x in leaves]
    if layout == "expanded":  # one token's keys and values for all tokens
        leaves = [leaf(rows, n, h, d), leaf(rows, 1, g, d), leaf(rows, 1, g, d)]
        return leaves, [leaves[0], *(x.expand(rows, n, g, d) for x in leaves[1:])]
    if layout == "sliced":
        leaves = [leaf(rows, 2 * n, count, d + 3) for count in (h, g, g)]
        return leaves, [x[:, ::2, :, 1 : d + 1] for x in leaves]
    leaves = [leaf(rows, n, count, d) for count in (h, g, g)]
    return leaves, leaves
