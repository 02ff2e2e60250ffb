"""One layer's temporal attention as each peer computes it, and what it is computed of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from aim_adapters.ops.temporal_attention import temporal_attention, temporal_attention_packed
from benchmarks.harness import relative_error

EVERY_PEER = ("triton", "sdpa", "sdpa compiled", "eager", "flex")
BACKEND = "inductor"
FLEX_BLOCK = 128


@dataclass(frozen=True)
class Case:
    """What is computed: one layer's temporal attention."""

    table: str
    num_frames: int
    tokens: int = 197
    heads: int = 12
    dim: int = 64
    dtype: str = "bfloat16"
    packed: bool = True
    bias: bool = False
    peers: tuple[str, ...] = EVERY_PEER
    images: int = 256

    @property
    def frames(self) -> int:
        """B*T: the frames of as many whole clips as fit."""
        return self.images // self.num_frames * self.num_frames

    @property
    def unit(self) -> int:
        """Bytes of the queries."""
        return self.frames * self.tokens * self.heads * self.dim * getattr(torch, self.dtype).itemsize


class Inputs:
    """Tensors of a case: the leaves that gradients are taken of, and the output's gradient."""

    def __init__(self, case: Case, device: str) -> None:
        self.case = case
        generator = torch.Generator(device).manual_seed(0)
        normal = partial(torch.randn, generator=generator, device=device, dtype=getattr(torch, case.dtype))
        shape = (case.frames, case.tokens, case.heads, case.dim)
        if case.packed:
            self.projections = [normal(*shape[:2], 3, *shape[2:])]  # [B*T, N, 3, H, d]
        else:
            self.projections = [normal(shape) for _ in range(3)]
        # A parameter, which stays float32.
        bias = partial(torch.randn, generator=generator, device=device)
        self.bias = bias(case.heads, case.num_frames, case.num_frames) if case.bias else None
        self.d_out = normal(shape)
        for leaf in self.leaves:
            leaf.requires_grad_()

    @property
    def leaves(self) -> list[Tensor]:
        """Every tensor that gets a gradient."""
        return self.projections if self.bias is None else [*self.projections, self.bias]

    @property
    def qkv(self) -> Sequence[Tensor]:
        """Queries, keys and values ``[B*T, N, H, d]``."""
        return self.projections[0].unbind(2) if self.case.packed else self.projections

    @cached_property
    def reference(self) -> list[Tensor]:
        """Output and gradients in float64."""
        exact = Inputs.__new__(Inputs)
        exact.case = self.case
        exact.projections = [leaf.detach().double().requires_grad_() for leaf in self.projections]
        exact.bias = None if self.bias is None else self.bias.detach().double().requires_grad_()
        exact.d_out = self.d_out.double()
        out = by_name("eager", exact)
        return [out.detach(), *torch.autograd.grad(out, exact.leaves, exact.d_out)]


# Peers: each computes the output of some inputs.


def by_name(implementation: str, inputs: Inputs) -> Tensor:
    """Attend by one of the library's implementations; only ours takes the packed projection as it is."""
    call = partial(
        temporal_attention_packed if inputs.case.packed and implementation == "triton" else temporal_attention,
        num_frames=inputs.case.num_frames,
        bias=inputs.bias,
        implementation=implementation,
    )
    if call.func is temporal_attention_packed:
        return call(inputs.projections[0])
    return call(*inputs.qkv)


def flex(inputs: Inputs, mask: Any) -> Tensor:
    """Attend by FlexAttention: all sequences of a head behind one another, under a block-diagonal mask."""
    from torch.nn.attention.flex_attention import flex_attention

    case, bias = inputs.case, inputs.bias
    frames, tokens = case.num_frames, case.tokens

    def add_bias(score: Tensor, _: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return score + bias[head, row % frames, column % frames]

    def sequences(x: Tensor) -> Tensor:
        x = x.unflatten(0, (-1, frames)).permute(3, 0, 2, 1, 4)  # [H, B, N, T, d]
        return x.flatten(1, 3).unsqueeze(0)  # [1, H, B*N*T, d]

    score_mod = None if bias is None else add_bias
    out = flex_attention(*map(sequences, inputs.qkv), score_mod=score_mod, block_mask=mask)
    return out[0].unflatten(1, (-1, tokens, frames)).permute(1, 3, 2, 0, 4).flatten(0, 1)  # [B*T, N, H, d]


def flex_mask(case: Case, device: str) -> Any:
    """Return the mask that lets a row see its own sequence only, block by block on the diagonal."""
    from torch.nn.attention.flex_attention import BlockMask

    if FLEX_BLOCK % case.num_frames:
        raise ValueError(f"sequences of {case.num_frames} frames straddle FlexAttention's blocks of {FLEX_BLOCK}")
    rows = case.frames * case.tokens
    blocks = -(-rows // FLEX_BLOCK)
    indices = torch.zeros(1, 1, blocks, blocks, dtype=torch.int32, device=device)
    indices[..., 0] = torch.arange(blocks, device=device)

    def own_sequence(_: Tensor, __: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return row // case.num_frames == column // case.num_frames

    counts = torch.ones(1, 1, blocks, dtype=torch.int32, device=device)
    return BlockMask.from_kv_blocks(
        counts, indices, BLOCK_SIZE=FLEX_BLOCK, mask_mod=own_sequence, seq_lengths=(rows, rows)
    )


def build(peer: str, inputs: Inputs) -> Callable[[], Tensor]:
    """Return what computes the output of the inputs, as one of the peers."""
    if peer == "flex":
        run = partial(flex, inputs, flex_mask(inputs.case, inputs.d_out.device.type))
    else:
        run = partial(by_name, peer.removesuffix(" compiled"), inputs)
    compiled = peer == "flex" or peer.endswith(" compiled")
    # The wrapper is new each time: a compiler keeps its work by function.
    return torch.compile(lambda: run(), backend=BACKEND, dynamic=False, fullgraph=True) if compiled else run


def passes(run: Callable[[], Tensor], inputs: Inputs) -> dict[str, Callable[[], Any]]:
    """Return the passes to time, by name."""
    return {
        "forward": torch.no_grad()(run),
        "forward+backward": lambda: torch.autograd.grad(run(), inputs.leaves, inputs.d_out),
    }


def errors(run: Callable[[], Tensor], inputs: Inputs) -> list[float]:
    """Return the relative error of output and gradients."""
    out = run()
    got = [out.detach(), *torch.autograd.grad(out, inputs.leaves, inputs.d_out)]
    return [relative_error(x, exact) for x, exact in zip(got, inputs.reference, strict=True)]
