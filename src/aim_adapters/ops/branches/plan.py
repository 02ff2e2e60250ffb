"""Describe a chain of residual branches: all that is not a tensor, as text that an operator can take."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

# Tensors of a branch, in the order in which a chain takes them. Those that train come last.
ATTENTION_FROZEN = ("norm_weight", "norm_bias", "qkv_weight", "qkv_bias", "out_weight", "out_bias", "gamma")
MLP_FROZEN = ("norm_weight", "norm_bias", "in_weight", "in_bias", "out_weight", "out_bias", "gamma")
WINDOWS = ("window_bias", "window_mask", "window_index")
TRAINED = ("down_weight", "down_bias", "up_weight", "up_bias", "bias")


class AttentionPlan(NamedTuple):
    """Describe ``x + f * adapter(out(attention(qkv(norm(x)))))``, Eq. 3 or 4.

    Attributes:
        over: ``"frames"``, ``"tokens"`` or ``"windows"``.
        heads: H.
        scale: Factor on the scores.
        eps: Of the norm.
        adapter: There is one.
        implementation: Of the attention.
        shares: Its frozen tensors are those of the branch in front of it, and are not given again.
    """

    over: str
    heads: int
    scale: float
    eps: float
    adapter: bool
    implementation: str
    shares: bool = False

    @property
    def skip(self) -> bool:
        """Return whether the adapter has an inner skip: the attention's output itself is added too."""
        return self.over != "frames"

    def keeps_packed(self, keep: str) -> bool:
        """Return whether queries, keys and values are kept: in ``"balanced"`` memory those of spatial attention."""
        return keep == "fast" or (keep == "balanced" and self.over != "frames")


class MlpPlan(NamedTuple):
    """Describe ``x + mlp(norm(x)) + f * adapter(norm(x))``, Eq. 5.

    Attributes:
        activation: Of the MLP.
        eps: Of the norm.
        adapter: There is one.
        scale: s, a part of f.
    """

    activation: str
    eps: float
    adapter: bool
    scale: float


class ChainPlan(NamedTuple):
    """Describe branches that follow one another.

    Attributes:
        branches: In order.
        num_frames: T.
        dtype: What products are computed in, as ``"bfloat16"``.
        memory: ``"fast"``, ``"balanced"`` or ``"low"``: what the backward pass finds, and what it computes again.
        tokens: N; known once there are tokens, and no part of the text.
        products: Of frozen weights: ``"auto"``, in ``dtype``; or ``"fp8"``.
    """

    branches: tuple[AttentionPlan | MlpPlan, ...]
    num_frames: int
    dtype: str
    memory: str
    tokens: int = 0
    products: str = "auto"

    @property
    def rows_per_clip(self) -> int:
        """Return T*N."""
        return self.num_frames * self.tokens

    @property
    def compute_dtype(self) -> torch.dtype:
        """Return what products are computed in."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found


def encode(plan: ChainPlan) -> str:
    """Write a plan as text, in a way that compilers can trace."""
    # Hexadecimal, as where PyTorch 2.11 takes a float for a variable, it can write it in no other way.
    words = [f"{plan.num_frames} {plan.dtype} {plan.memory} {plan.products}"]
    for each in plan.branches:
        if isinstance(each, AttentionPlan):
            flags = f"{int(each.adapter)} {int(each.shares)}"
            words.append(f"{each.over} {each.heads} {each.scale.hex()} {each.eps.hex()} {flags} {each.implementation}")
        else:
            words.append(f"mlp {each.activation} {each.eps.hex()} {int(each.adapter)} {each.scale.hex()}")
    return ",".join(words)


@functools.lru_cache(maxsize=1024)
def decode(text: str) -> ChainPlan:
    """Read a plan that `encode` wrote."""
    first, *rest = text.split(",")
    branches: list[AttentionPlan | MlpPlan] = []
    for each in rest:
        kind, *words = each.split()
        if kind == "mlp":
            branches.append(MlpPlan(words[0], float.fromhex(words[1]), words[2] == "1", float.fromhex(words[3])))
        else:
            heads, scale, eps = int(words[0]), float.fromhex(words[1]), float.fromhex(words[2])
            adapter, shares = (word == "1" for word in words[3:5])
            branches.append(AttentionPlan(kind, heads, scale, eps, adapter, words[5], shares))
    num_frames, dtype, memory, products = first.split()
    return ChainPlan(tuple(branches), int(num_frames), dtype, memory, products=products)
