"""Records of what the branches of a block are made of: weights, settings, windows and positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class Derived(NamedTuple):
    """A tensor that is made of the model's own at every call, so that it always has their values.

    Attributes:
        make: Makes it of the sources.
        sources: The model's tensors.
        shape: Its shape.
    """

    make: Callable[..., Tensor]
    sources: tuple[Tensor, ...]
    shape: tuple[int, ...]

    def now(self) -> Tensor:
        """Return the tensor with the values that its sources have now."""
        return self.make(*self.sources)


def made(tensor: Tensor | Derived | None) -> Any:
    """Return a tensor, made now if it is derived of others; or None."""
    return tensor.now() if isinstance(tensor, Derived) else tensor


class Windows(NamedTuple):
    """The windows within which the tokens of a frame attend to one another (Swin).

    Attributes:
        size: Height and width of a window, in tokens.
        shift: How far the windows are shifted down and to the right, in tokens. Tokens that the shift brings together
            from opposite borders do not attend to one another.
        bias: Relative position bias ``[H, N, N]``, added to the scores of the N tokens of a window; or how to make it.
        always_shifted: Shift also along a side of the frame that one window covers; False: such a side is not shifted.
    """

    size: tuple[int, int]
    shift: tuple[int, int]
    bias: Tensor | Derived
    always_shifted: bool = False


class Positions(NamedTuple):
    """What a spatial attention reads of the places of its tokens.

    Attributes:
        rotary: Which features of queries and keys are rotated together: ``"interleaved"``, 2i and 2i + 1; ``"halves"``,
            i and i + d/2; ``""``: none.
        sin: Sines of the angles, ``[N', d]`` or ``[H, N', d]``, of the last N' tokens of a frame; the tokens in front
            are not rotated. None without rotation.
        cos: Cosines, the same.
        bias: Added to the scores of all tokens of a frame ``[H, N, N]``, or None.
    """

    rotary: str = ""
    sin: Tensor | None = None
    cos: Tensor | None = None
    bias: Tensor | None = None

    def kind(self) -> tuple[Any, ...]:
        """Return what the choice of a way to compute depends on: all but the values."""
        tensors = (self.sin, self.cos, self.bias)
        return self.rotary, *(each is not None and (each.shape, each.dtype, each.requires_grad) for each in tensors)


class AttentionParts(NamedTuple):
    """The weights and settings of a pre-norm attention branch, ``gamma * out(norm(attention(qkv(norm(x)))))``.

    Attributes:
        norm_weight: Weight of the norm ``[D]``, or None.
        norm_bias: Bias of the norm ``[D]``, or None.
        qkv_weight: Weight of the query, key and value projections ``[3*H*d, D]``, concatenated in this order; or how to
            make it.
        qkv_bias: Their bias ``[3*H*d]``, how to make it, or None.
        out_weight: Weight of the output projection ``[D, H*d]``.
        out_bias: Bias of the output projection ``[D]``, or None.
        gamma: LayerScale ``[D]``, or None.
        eps: Epsilon of the norm.
        heads: Number of heads H.
        scale: Factor on the scores ``q·kᵀ``.
        plain: Spatial attention is ``softmax(scale · q·kᵀ) v`` over all tokens of a frame: no positions, masks or
            windows.
        windows: The windows of spatial attention, where they and their bias are all that it adds; else None.
        norm: Kind of the norm: ``"layer"`` or ``"rms"``.
        head_norm: Kind of the norms of queries and keys over d, or ``""`` for none.
        head_eps: Epsilon of these norms.
        q_norm_weight: Weight of the norm of queries ``[d]``, or None.
        q_norm_bias: Bias of the norm of queries ``[d]``, or None.
        k_norm_weight: Weight of the norm of keys ``[d]``, or None.
        k_norm_bias: Bias of the norm of keys ``[d]``, or None.
        inner_norm: Kind of the norm of attended values in front of the output projection, or ``""`` for none.
        inner_eps: Epsilon of this norm.
        inner_weight: Weight of this norm ``[H*d]``, or None.
        inner_bias: Bias of this norm ``[H*d]``, or None.
    """

    norm_weight: Tensor | None
    norm_bias: Tensor | None
    qkv_weight: Tensor | Derived
    qkv_bias: Tensor | Derived | None
    out_weight: Tensor
    out_bias: Tensor | None
    gamma: Tensor | None
    eps: float
    heads: int
    scale: float
    plain: bool
    windows: Windows | None = None
    norm: str = "layer"
    head_norm: str = ""
    head_eps: float = 0.0
    q_norm_weight: Tensor | None = None
    q_norm_bias: Tensor | None = None
    k_norm_weight: Tensor | None = None
    k_norm_bias: Tensor | None = None
    inner_norm: str = ""
    inner_eps: float = 0.0
    inner_weight: Tensor | None = None
    inner_bias: Tensor | None = None


class MlpParts(NamedTuple):
    """The weights and settings of a pre-norm MLP branch.

    ``gamma * out(norm(activation(in(norm(x)))))``, or gated: ``gamma * out(norm(activation(gate(h)) * in(h)))``.

    Attributes:
        norm_weight: Weight of the norm ``[D]``, or None.
        norm_bias: Bias of the norm ``[D]``, or None.
        in_weight: Weight of the first linear layer ``[K, D]``; of a gated MLP, the layer that is not activated;
            or how to make it.
        in_bias: Bias of the first linear layer ``[K]``, how to make it, or None.
        out_weight: Weight of the second linear layer ``[D, K]``.
        out_bias: Bias of the second linear layer ``[D]``, or None.
        gamma: LayerScale ``[D]``, or None.
        eps: Epsilon of the norm.
        activation: ``"gelu"``, ``"gelu_tanh"``, ``"quick_gelu"``, ``"relu"`` or ``"silu"``.
        norm: Kind of the norm: ``"layer"`` or ``"rms"``.
        gate_weight: Weight of the layer of a gated MLP that is activated ``[K, D]``, or how to make it; None where the
            MLP is not gated.
        gate_bias: Bias of that layer ``[K]``, how to make it, or None.
        inner_norm: Kind of the norm in front of the second linear layer, or ``""`` for none.
        inner_eps: Epsilon of this norm.
        inner_weight: Weight of this norm ``[K]``, or None.
        inner_bias: Bias of this norm ``[K]``, or None.
    """

    norm_weight: Tensor | None
    norm_bias: Tensor | None
    in_weight: Tensor | Derived
    in_bias: Tensor | Derived | None
    out_weight: Tensor
    out_bias: Tensor | None
    gamma: Tensor | None
    eps: float
    activation: str
    norm: str = "layer"
    gate_weight: Tensor | Derived | None = None
    gate_bias: Tensor | Derived | None = None
    inner_norm: str = ""
    inner_eps: float = 0.0
    inner_weight: Tensor | None = None
    inner_bias: Tensor | None = None


class BlockParts(NamedTuple):
    """The weights and settings of a block's two branches.

    Attributes:
        attention: Those of the attention branch, or why it must run as modules, in words.
        mlp: The same for the MLP branch.
    """

    attention: AttentionParts | str
    mlp: MlpParts | str
