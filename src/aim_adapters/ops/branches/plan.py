"""The description of a chain of residual branches: all that is not a tensor, as text that an operator can take."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch


class AttentionPlan(NamedTuple):
    """The description of ``x + f * adapter(out(attention(qkv(norm(x)))))``, Eq. 3 or 4.

    Attributes:
        over: ``"frames"``, ``"tokens"`` or ``"windows"``.
        heads: H.
        scale: Factor on the scores.
        eps: Of the norm.
        implementation: Of the attention.
        shares: Its frozen layers are those of the branch in front of it, and are not given again.
        norm: Kind of the norm: ``"layer"`` or ``"rms"``.
        head_norm: Kind of the norms of queries and keys over d, or ``""`` for none.
        head_eps: Of these norms.
        rotary: Which features of queries and keys are rotated together: ``"interleaved"``, 2i and 2i + 1; ``"halves"``,
            i and i + d/2; ``""``: none.
        inner_norm: Kind of the norm of attended values over H*d, in front of the output projection, or ``""`` for none.
        inner_eps: Of this norm.
        adapter: Activation of its adapters: ``"gelu"``, or ``"none"`` where they are linear.
    """

    over: str
    heads: int
    scale: float
    eps: float
    implementation: str
    shares: bool = False
    norm: str = "layer"
    head_norm: str = ""
    head_eps: float = 0.0
    rotary: str = ""
    inner_norm: str = ""
    inner_eps: float = 0.0
    adapter: str = "gelu"

    def sharing(self) -> AttentionPlan:
        """Return the description of the same branch behind another that gives its frozen layers."""
        # By the constructor: the compiler of PyTorch 2.6 cannot trace _replace.
        numbers, norms = (self.heads, self.scale, self.eps), (self.norm, self.head_norm, self.head_eps)
        inner = self.inner_norm, self.inner_eps, self.adapter
        return AttentionPlan(self.over, *numbers, self.implementation, True, *norms, self.rotary, *inner)

    @property
    def skip(self) -> bool:
        """Return whether the adapter has an inner skip: the attention's output itself is added too."""
        return self.over != "frames"

    def is_bare(self) -> bool:  # no property: the compiler of PyTorch 2.6 traces none of a named tuple
        """Return whether there is nothing between LayerNorm, projections and attention."""
        return self.norm == "layer" and not (self.head_norm or self.rotary or self.inner_norm)

    def keeps_packed(self, keep: str) -> bool:
        """Return whether queries, keys and values are kept: in ``"balanced"`` memory those of spatial attention."""
        return keep == "fast" or (keep == "balanced" and self.over != "frames")


class MlpPlan(NamedTuple):
    """The description of ``x + mlp(norm(x)) + f * adapter(norm(x))``, Eq. 5.

    The MLP is ``out(norm(activation(in(x))))``, or gated ``out(norm(activation(gate(x)) * in(x)))``.

    Attributes:
        activation: Of the MLP.
        eps: Of the norm.
        scale: s, a part of f.
        norm: Kind of the norm: ``"layer"`` or ``"rms"``.
        gated: The MLP is gated.
        inner_norm: Kind of the norm in front of the MLP's last layer, over K, or ``""`` for none.
        inner_eps: Of this norm.
        adapter: Activation of the adapter: ``"gelu"``, or ``"none"`` where it is linear.
    """

    activation: str
    eps: float
    scale: float
    norm: str = "layer"
    gated: bool = False
    inner_norm: str = ""
    inner_eps: float = 0.0
    adapter: str = "gelu"


class ChainPlan(NamedTuple):
    """The description of branches that follow one another.

    Attributes:
        branches: In order.
        num_frames: T.
        dtype: What products are computed in, as ``"bfloat16"``.
        memory: ``"fast"``, ``"balanced"`` or ``"low"``: what the backward pass finds, and what it computes again.
        tokens: N; known once there are tokens, and no part of the text.
        frozen_precision: Of products with frozen weights: ``"auto"``, that of ``dtype``; or ``"fp8"``.
    """

    branches: tuple[AttentionPlan | MlpPlan, ...]
    num_frames: int
    dtype: str
    memory: str
    tokens: int = 0
    frozen_precision: str = "auto"

    def with_tokens(self, tokens: int) -> ChainPlan:
        """Return the same plan for frames of N tokens."""
        return _with_tokens(self, tokens)

    @property
    def rows_per_clip(self) -> int:
        """Return T*N."""
        return self.num_frames * self.tokens

    @property
    def compute_dtype(self) -> torch.dtype:
        """Return what products are computed in."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found


@functools.lru_cache(maxsize=1024)
def _with_tokens(plan: ChainPlan, tokens: int) -> ChainPlan:
    return plan._replace(tokens=tokens)


def encode(plan: ChainPlan) -> str:
    """Write a plan as text, in a way that compilers can trace."""
    # Hexadecimal, as where PyTorch 2.11 takes a float for a variable, it can write it in no other way.
    words = [f"{plan.num_frames} {plan.dtype} {plan.memory} {plan.frozen_precision}"]
    for branch in plan.branches:
        if isinstance(branch, AttentionPlan):
            numbers = f"{branch.heads} {branch.scale.hex()} {branch.eps.hex()}"
            heads = f"{branch.norm} {branch.head_norm or _NONE} {branch.head_eps.hex()} {branch.rotary or _NONE}"
            inner = f"{branch.inner_norm or _NONE} {branch.inner_eps.hex()} {branch.adapter}"
            words.append(f"{branch.over} {numbers} {branch.implementation} {int(branch.shares)} {heads} {inner}")
        else:
            numbers = f"{branch.eps.hex()} {branch.scale.hex()}"
            inner = f"{branch.inner_norm or _NONE} {branch.inner_eps.hex()} {branch.adapter}"
            words.append(f"mlp {branch.activation} {numbers} {branch.norm} {int(branch.gated)} {inner}")
    return ",".join(words)


_NONE = "-"


@functools.lru_cache(maxsize=1024)
def decode(text: str) -> ChainPlan:
    """Read a plan that `encode` wrote."""
    first, *rest = text.split(",")
    branches: list[AttentionPlan | MlpPlan] = []
    for branch in rest:
        kind, *words = branch.split()
        if kind == "mlp":
            activation, eps, scale, norm, gated, inner, inner_eps, adapter = words
            numbers = float.fromhex(eps), float.fromhex(scale)
            inside = _kind(inner), float.fromhex(inner_eps)
            branches.append(MlpPlan(activation, *numbers, norm, gated == "1", *inside, adapter))
        else:
            *outer, inner, inner_eps, adapter = words
            heads, scale, eps, implementation, shares, norm, head_norm, head_eps, rotary = outer
            outside = int(heads), float.fromhex(scale), float.fromhex(eps), implementation, shares == "1"
            of_heads = norm, _kind(head_norm), float.fromhex(head_eps), _kind(rotary)
            inside = _kind(inner), float.fromhex(inner_eps)
            branches.append(AttentionPlan(kind, *outside, *of_heads, *inside, adapter))
    num_frames, dtype, memory, frozen_precision = first.split()
    return ChainPlan(tuple(branches), int(num_frames), dtype, memory, frozen_precision=frozen_precision)


def _kind(word: str) -> str:
    return "" if word == _NONE else word
