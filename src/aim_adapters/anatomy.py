"""Say where things are in an image transformer, and how its attention is read.

A descriptor in ``backbones/`` fills these two records; everything else works from them alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from aim_adapters.errors import UnsupportedModelError

ProjectQKV = Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]]
ProjectPacked = Callable[[Any, Tensor], Tensor | None]
ProjectOut = Callable[[Any, Tensor, Tensor], Tensor]
Attend = Callable[..., Tensor]
Parts = Callable[[Any, Any], "BlockParts"]


class Windows(NamedTuple):
    """Say which tokens of a frame attend to one another.

    Attributes:
        size: Height and width of a window.
        shift: How far the windows are shifted, down and right; those at the edges are cut in parts.
        bias: Added to the scores, ``[H, N, N]`` for the N tokens of a window.
        always_shifted: Also where a window is as high or wide as the frame; else it is not shifted that way.
    """

    size: tuple[int, int]
    shift: tuple[int, int]
    bias: Tensor
    always_shifted: bool = False


class AttentionParts(NamedTuple):
    """Hold what a pre-norm attention branch is made of: ``gamma * (out(attention(qkv(norm(x)))))``.

    Attributes:
        norm_weight: Of the LayerNorm in front ``[D]``, or None.
        norm_bias: ``[D]``, or None.
        qkv_weight: ``[3*H*d, D]``; separate projections are put together.
        qkv_bias: ``[3*H*d]``, or None.
        out_weight: ``[D, H*d]``.
        out_bias: ``[D]``, or None.
        gamma: LayerScale ``[D]``, or None.
        eps: Of the LayerNorm.
        heads: H.
        scale: Factor on the scores.
        plain: Among the tokens of a frame it is the softmax of scaled products alone: no positions, masks or windows.
        windows: The windows, if these are all that it knows beside.
    """

    norm_weight: Tensor | None
    norm_bias: Tensor | None
    qkv_weight: Tensor
    qkv_bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None
    gamma: Tensor | None
    eps: float
    heads: int
    scale: float
    plain: bool
    windows: Windows | None = None


class MlpParts(NamedTuple):
    """Hold what a pre-norm MLP branch is made of: ``gamma * out(activation(in(norm(x))))``.

    Attributes:
        norm_weight: Of the LayerNorm in front ``[D]``, or None.
        norm_bias: ``[D]``, or None.
        in_weight: ``[K, D]``.
        in_bias: ``[K]``, or None.
        out_weight: ``[D, K]``.
        out_bias: ``[D]``, or None.
        gamma: LayerScale ``[D]``, or None.
        eps: Of the LayerNorm.
        activation: ``"gelu"``, ``"gelu_tanh"``, ``"quick_gelu"``, ``"relu"`` or ``"silu"``.
    """

    norm_weight: Tensor | None
    norm_bias: Tensor | None
    in_weight: Tensor
    in_bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None
    gamma: Tensor | None
    eps: float
    activation: str


class BlockParts(NamedTuple):
    """Hold what a block's branches are made of, or say why a branch is not made of such parts."""

    attention: AttentionParts | str
    mlp: MlpParts | str


@dataclass(frozen=True)
class BlockAnatomy:
    """Describe one kind of transformer block.

    A field that names a part holds the attribute's name on the block, or None; the part may be a module, a
    parameter (a factor, as EVA's ``gamma_1``) or None. Use module-level functions: a wrapped model is pickled
    with its anatomy.

    Args:
        attention: Attribute of the attention module.
        mlp: Attribute of the MLP.
        pre_attention: Part applied before attention (the norm of a pre-norm block).
        post_attention: Part applied to the attention's output (LayerScale, the norm of a post-norm block), or several
            in order.
        pre_mlp: Part applied before the MLP; the joint adapter reads its output.
        post_mlp: Part applied to the MLP's output.
        project_qkv: ``(attention, h) -> q, k, v``: tokens ``[B*T, N, D]`` to ``[B*T, N, H, d]`` (keys and values may
            have fewer heads), after any query/key norm, one dtype, views of a packed projection where there is one.
        project_out: ``(attention, o, h) -> out``: attention's output ``[B*T, N, H, d]`` to the shape of ``h``, which is
            what the attention read.
        attend: ``(block, h, *args, **kwargs) -> out``: the family's own spatial attention with the block's own
            extra arguments; refuses the arguments it cannot honor.
        softmax_scale: ``(attention) -> float``: factor on the attention's scores.
        heads: ``(attention) -> int``: number of query heads.
        project_packed: ``(attention, h) -> qkv``: the same as ``project_qkv`` as one tensor ``[B*T, N, 3, H, d]`` where
            the family writes one, so that a kernel can return one gradient; or None, for one attention or for all.
        fused_spatial: Run the spatial pass as ``project_out(sdpa(project_qkv(h)))`` instead of ``attend``: the same
            numbers, where the family's own call would not always take a fused kernel.
        temporal: The block also attends over time (Swin: only where windows are not shifted).
        parts: ``(block, anatomy) -> BlockParts``: the block's branches as tensors, looked up at every call, so that a
            layer that was replaced is seen; or None: a block runs as modules.
    """

    attention: str
    mlp: str
    pre_attention: str | None
    post_attention: str | tuple[str, ...] | None
    pre_mlp: str | None
    post_mlp: str | None
    project_qkv: ProjectQKV
    project_out: ProjectOut
    attend: Attend
    softmax_scale: Callable[[Any], float]
    heads: Callable[[Any], int]
    project_packed: ProjectPacked | None = None
    fused_spatial: bool = False
    temporal: bool = True
    parts: Parts | None = None


@dataclass(frozen=True)
class HeadAnatomy:
    """Describe one output layer of the image model, in front of which frames are averaged.

    Args:
        path: Its path from the root.
        name: Name of our layer in its place, and so its key in a checkpoint.
        classifier: True: a linear classification layer, of which a copy trains. False: a fixed projection, applied
            to each frame before averaging (it may not be linear).
    """

    path: str
    name: str = "head"
    classifier: bool = True


@dataclass(frozen=True)
class BackboneAnatomy:
    """Describe one image transformer. Paths are dotted, relative to the root unless they say otherwise.

    Args:
        family: Name of the descriptor that read the model.
        root: Path from the model to the module whose input is images; ``""`` for the model itself.
        input_name: Name of the image argument of the root's ``forward``.
        blocks: Every block in order: its path, and its anatomy.
        block_widths: Width D of each block's tokens.
        entry: Module where tokens enter the blocks; its input (``entry_side="input"``) or output gets the
            temporal embedding. None: time enters each temporal attention as a relative bias instead (Swin).
        entry_side: ``"input"`` or ``"output"``.
        norm: Path of the final norm, or None.
        heads: Output layers; empty when the root's own output is averaged.
        output_width: Width of what the classification layer reads.
        in_channels: Channels of an image.
        patch_size: Height and width of a patch in pixels.
        prefix_tokens: Tokens in front of the patches ([class], registers, distillation).
        hidden_when_headed: Attributes of the root that must read None while our own head is in place.
        refused_inputs: Arguments of the root that must stay None: masks, which have no meaning along time.
        blocked_methods: Methods that would replace or bypass what is ours; they raise while wrapped.
        library: Library the model comes from.
        model_name: Name under which that library rebuilds the base model, or None when unknown.
        model_revision: Revision of the weights under that name, or None when unknown.
        build_arguments: What, beside the name, rebuilds the same architecture: values that JSON can hold.
        image_size: Height and width of the images it was trained on, in pixels, if known.
        image_mean: Mean per channel that images are normalized by, for pixels in [0, 1], if known.
        image_std: The same for the standard deviation.
        patch_inputs: Where the root reads patches cut beforehand (NaFlex) instead of images, the names of its further
            inputs that have one row per frame.
        pooled_outputs: Where the root returns a record of several outputs (transformers), the names of those that
            are pooled over tokens: they are averaged over frames, and the others are left per frame.
        relabel: ``(root, labels) -> old``: change what the model itself knows of its classes, to a number of them when
            a new classification layer comes, and back to ``old`` when it goes; None where it knows nothing.
        patch_conv: Path of the convolution that cuts an image into patches, if it is one.
        class_token_only: ``(root) -> bool``, asked at every call: of what the last block returns, the root's own
            ``forward`` reads the first token alone, for each frame by itself, so a block need not compute the others.
            None: it does not.
        whole_model: The root lies in a larger model (CLIP) that reads its output, so the output must stay as it is.
    """

    family: str
    root: str
    input_name: str
    blocks: tuple[tuple[str, BlockAnatomy], ...]
    block_widths: tuple[int, ...]
    entry: str | None
    entry_side: Literal["input", "output"]
    norm: str | None
    heads: tuple[HeadAnatomy, ...]
    output_width: int
    in_channels: int
    patch_size: tuple[int, int]
    prefix_tokens: int
    hidden_when_headed: tuple[str, ...] = ()
    refused_inputs: tuple[str, ...] = ()
    blocked_methods: tuple[str, ...] = ()
    library: str = ""
    model_name: str | None = None
    model_revision: str | None = None
    build_arguments: Mapping[str, Any] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    patch_inputs: tuple[str, ...] = ()
    pooled_outputs: tuple[str, ...] = ()
    relabel: Callable[[Any, Any], Any] | None = None
    patch_conv: str | None = None
    class_token_only: Callable[[Any], bool] | None = None
    whole_model: bool = False


def apply_part(block: nn.Module, name: str | tuple[str, ...] | None, x: Tensor) -> Tensor:
    """Apply a part of a block that may be a module, a factor, several of them, or absent.

    Args:
        block: The block.
        name: Attribute on the block, several in order, or None.
        x: Tokens ``[..., D]``.
    """
    if isinstance(name, tuple):
        for each in name:
            x = apply_part(block, each, x)
        return x
    part = None if name is None else getattr(block, name)
    if part is None:
        return x
    result: Tensor = x * part if isinstance(part, Tensor) else part(x)
    return result


def has_hooks(module: nn.Module) -> bool:
    """Return whether calling a module does more than its class says: it has hooks, or a ``forward`` of its own."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or "forward" in module.__dict__  # transformers puts one there to record outputs


def require_type(block: nn.Module, attribute: str, expected: Sequence[type], *, where: str) -> None:
    """Refuse a part of a block that is not exactly of a known type.

    Sub-classes are refused too: another attention under the same attribute names runs and is silently wrong.

    Raises:
        UnsupportedModelError: The part has another type.
    """
    part = getattr(block, attribute, None)
    if type(part) not in expected:
        names = " or ".join(f"{t.__module__}.{t.__qualname__}" for t in expected)
        raise UnsupportedModelError(
            f"{where}.{attribute} is a {type(part).__module__}.{type(part).__qualname__}, expected {names}; "
            "describe this block with register_backbone to adapt it"
        )


def fingerprint(root: nn.Module, anatomy: BackboneAnatomy) -> str:
    """Return a hash over the roles and shapes of a base model.

    It does not depend on the library that holds the weights: a packed projection and three separate ones have the
    same number of elements.

    Args:
        root: The module that the anatomy describes.
        anatomy: Its anatomy.
    """
    blocks = []
    for (path, block), width in zip(anatomy.blocks, anatomy.block_widths, strict=True):
        module = root.get_submodule(path)
        matrices = [
            sum(p.numel() for p in getattr(module, part).parameters() if p.ndim >= 2)
            for part in (block.attention, block.mlp)
        ]
        blocks.append([width, *matrices, round(block.softmax_scale(getattr(module, block.attention)), 6)])
    facts = [anatomy.in_channels, list(anatomy.patch_size), anatomy.prefix_tokens, anatomy.output_width, blocks]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
