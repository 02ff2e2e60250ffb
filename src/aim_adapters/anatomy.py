"""Records of where the parts of an image transformer are, and of how its attention is computed.

A descriptor in ``backbones/`` fills them in; everything else works from them alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from aim_adapters.errors import StateError, UnsupportedModelError
from aim_adapters.parts import (
    AttentionParts as AttentionParts,
)
from aim_adapters.parts import (
    BlockParts as BlockParts,
)
from aim_adapters.parts import (
    Derived as Derived,
)
from aim_adapters.parts import (
    MlpParts as MlpParts,
)
from aim_adapters.parts import (
    Positions as Positions,
)
from aim_adapters.parts import (
    Windows as Windows,
)
from aim_adapters.parts import (
    made as made,
)

ProjectQKV = Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]]
ProjectPacked = Callable[[Any, Tensor], Tensor | None]
ProjectOut = Callable[[Any, Tensor, Tensor], Tensor]
Attend = Callable[..., Tensor]
Parts = Callable[[Any, Any], "BlockParts"]
ReadPositions = Callable[..., "Positions | str | None"]
Tiles = Callable[[Any, int, int], Tensor]
Override = Callable[..., Any]


@dataclass(frozen=True)
class BlockAnatomy:
    """The anatomy of one kind of transformer block.

    A field that names a part holds the name of an attribute of the block, or None. That attribute may be a module, a
    parameter to multiply by (EVA's ``gamma_1``) or None. Functions must be defined at module level: a wrapped model is
    pickled with its anatomy.

    Args:
        attention: Attribute of the attention module.
        mlp: Attribute of the MLP.
        pre_attention: Part applied before attention (the norm of a pre-norm block).
        post_attention: Part applied to the attention's output (LayerScale, the norm of a post-norm block), or several
            parts in order. Name dropout and drop path too: frozen, they change nothing, but they may have hooks.
        pre_mlp: Part applied before the MLP; the joint adapter reads its output.
        post_mlp: The same for the MLP's output.
        project_qkv: ``(attention, h) -> q, k, v``: project tokens ``[B*T, N, D]`` to queries ``[B*T, N, H, d]`` and to
            keys and values, which may have fewer heads. Any query/key norm is applied, all three have one dtype, and
            they are views of a packed projection where there is one.
        project_out: ``(attention, o, h) -> out``: project attended values ``[B*T, N, H, d]`` to the shape of ``h``, the
            tokens that attention read.
        attend: ``(block, h, *args, **kwargs) -> out``: the family's own spatial attention, with the further arguments
            that the block's ``forward`` got. It refuses those it cannot honor.
        softmax_scale: ``(attention) -> float``: factor on the scores ``q·kᵀ``.
        heads: ``(attention) -> int``: number of query heads H.
        project_packed: ``(attention, h) -> qkv``: what ``project_qkv`` returns as one tensor ``[B*T, N, 3, H, d]``, so
            that a kernel can return one gradient. It returns None for an attention that does not pack its projections;
            the field is None for a family that never does.
        fused_spatial: Compute spatial attention as ``project_out(sdpa(project_qkv(h)))`` instead of ``attend``: the
            same numbers, where the family's own call would not always take a fused kernel.
        temporal: The block also attends over time (Swin: only where windows are not shifted).
        parts: ``(block, anatomy) -> BlockParts``: the weights of the block's branches, read again when a module, a
            parameter, a setting or a hook inside of the block has changed. What is not one of the block's own
            parameters or buffers must be `Derived` of them. None: these blocks always run as modules.
        tiles: ``(block, rows, columns) -> index``: the tokens of each window of a frame of ``rows`` times ``columns``
            tokens, int64 ``[W, M]``, -1 where a window is padded (Swin). None: all tokens of a frame attend to one
            another.
        positions: ``(block, *args, **kwargs) -> Positions``: what spatial attention reads of the places of its tokens,
            with the further arguments that the block's ``forward`` got; None where it reads nothing, or why it must
            run as modules, in words. None: whatever is passed on, it runs as modules.
    """

    attention: str
    mlp: str
    pre_attention: str | None
    post_attention: str | tuple[str, ...] | None
    pre_mlp: str | None
    post_mlp: str | tuple[str, ...] | None
    project_qkv: ProjectQKV
    project_out: ProjectOut
    attend: Attend
    softmax_scale: Callable[[Any], float]
    heads: Callable[[Any], int]
    project_packed: ProjectPacked | None = None
    fused_spatial: bool = False
    temporal: bool = True
    parts: Parts | None = None
    tiles: Tiles | None = None
    positions: ReadPositions | None = None


@dataclass(frozen=True)
class HeadAnatomy:
    """The anatomy of one output layer of the image model.

    Args:
        path: Its path, relative to the root.
        name: Name of the layer that takes its place in the video model, and so its key in a checkpoint.
        classifier: True: a linear classification layer. Frames are averaged before it, and a copy of it trains. False:
            a fixed projection. It may not be linear, so it is applied to each frame before frames are averaged.
    """

    path: str
    name: str = "head"
    classifier: bool = True


@dataclass(frozen=True)
class BackboneAnatomy:
    """The anatomy of one image transformer. Paths are dotted and relative to the root, unless they say otherwise.

    Args:
        family: Name of the descriptor that read the model.
        root: Path, relative to the model, of the module whose input is images; ``""`` for the model itself.
        input_name: Name of the image argument of the root's ``forward``.
        blocks: Path and anatomy of every block, in order.
        block_widths: Width D of each block's tokens.
        entry: Path of the module where tokens enter the blocks: the temporal embedding is added there. None: each
            temporal attention has a relative bias along time instead (Swin).
        entry_side: ``"input"`` or ``"output"``: the side of ``entry`` where the temporal embedding is added.
        norm: Path of the final norm, or None.
        heads: Output layers; empty where the root has none, so that its output is averaged over frames.
        output_width: Width of the features that the classification layer reads.
        in_channels: Channels of an image.
        patch_size: Height and width of a patch in pixels.
        prefix_tokens: Number of tokens in front of the patches ([class], registers, distillation).
        hidden_when_headed: Attributes of the root that must be None while a new classification layer is in place.
        refused_inputs: Arguments of the root that must stay None: masks, which have no meaning along time.
        blocked_methods: Methods of the root, of modules inside of it, or of the whole model, that would replace, cut,
            reset or freeze parts; those that exist raise while the model is wrapped.
        image_methods: Methods of the root, or of modules inside of it, that take images as their first argument and
            return one row per image. While wrapped, those of the root take videos too and return one row per frame.
        overrides: Methods of the root, or of the whole model, that describe or write the model, and functions that run
            in their place while it is wrapped: ``(model, adapter, original, *args, **kwargs)``. ``original`` is the
            model's own method. ``adapter`` is the adapter that runs: its ``anatomy``, ``config`` and
            ``temporal_embedding``, whether it is ``enabled``, its ``classifier(name)`` or None.
        class_count: Attribute of the root with its number of classes, which tells that of the adapter while wrapped;
            ``""``: it has none.
        library: Library the model comes from.
        model_name: Name under which that library rebuilds the base model, or None when unknown.
        model_revision: Revision of the weights under that name, or None when unknown.
        build_arguments: Arguments that, with the name, rebuild the same architecture; values that JSON can hold.
        image_size: Height and width, in pixels, of the images that the model was trained on; None when unknown.
        image_mean: Mean of each channel, for pixels in [0, 1], by which images are normalized; None when unknown.
        image_std: Standard deviation of each channel, likewise.
        patch_inputs: For a root that reads patches cut beforehand (NaFlex) instead of images: the names of its further
            inputs with one row per frame.
        optional_patch_inputs: The same for a root that takes images, or patches in their place: the name of the patches
            in a dictionary of all inputs, then those of the further inputs.
        pooled_outputs: For a root that returns a record of several outputs (transformers): the names of those pooled
            over tokens. They are averaged over frames; the others keep one row per frame.
        relabel: ``(root, labels) -> old``: change what the model itself records about its classes. ``labels`` is the
            number of classes of a new classification layer, or an earlier ``old`` to restore. None: the model records
            nothing.
        patch_conv: Path of the convolution that cuts an image into patches; None where it is not a single convolution.
        class_token: The first of the prefix tokens, if there are any, is a [class] token.
        class_token_only: ``(root) -> bool``, asked at every call: whether the root's ``forward`` reads only the first
            token of the last block's output, frame by frame, so that the block need not compute the others. None:
            never.
        whole_model: The root is part of a larger model (CLIP) that reads its output, so the output's width must not
            change.
        caution: What a user should hear before adapting these weights, or ``""``; wrapping warns with it.
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
    image_methods: tuple[str, ...] = ()
    overrides: tuple[tuple[str, Override], ...] = ()
    class_count: str = ""
    library: str = ""
    model_name: str | None = None
    model_revision: str | None = None
    build_arguments: Mapping[str, Any] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    patch_inputs: tuple[str, ...] = ()
    optional_patch_inputs: tuple[str, ...] = ()
    pooled_outputs: tuple[str, ...] = ()
    relabel: Callable[[Any, Any], Any] | None = None
    patch_conv: str | None = None
    class_token: bool = True
    class_token_only: Callable[[Any], bool] | None = None
    whole_model: bool = False
    caution: str = ""


def apply_part(block: nn.Module, name: str | tuple[str, ...] | None, x: Tensor) -> Tensor:
    """Apply a part of a block that may be a module, a factor, several of them, or absent.

    Args:
        block: The block.
        name: Attribute of the block, several in order, or None.
        x: Tokens ``[..., D]``.

    Returns:
        Tokens ``[..., D]``.
    """
    if isinstance(name, tuple):
        for part_name in name:
            x = apply_part(block, part_name, x)
        return x
    part = None if name is None else getattr(block, name)
    if part is None:
        return x
    result: Tensor = x * part if isinstance(part, Tensor) else part(x)
    return result


def has_hooks(module: nn.Module) -> bool:
    """Return whether calling a module does more than its class says: it has hooks, or its own ``forward``.

    Args:
        module: Any module.
    """
    # Branches, as the compiler of PyTorch 2.11 traces no `bool(hooks)`.
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    return "forward" in module.__dict__  # transformers puts one there to record outputs


def require_called(module: nn.Module, where: str) -> None:
    """Refuse a module that FSDP2 shards by itself although its weights are read without a call of it.

    FSDP2 gathers the weights of a module where the module is called, and shards them again behind it.

    Args:
        module: The module.
        where: Its path, for messages.

    Raises:
        StateError: FSDP2 shards it.
    """
    if hasattr(type(module), "unshard"):
        raise StateError(
            f"{where} is sharded by itself, but adapted blocks read its weights without a call of it, so that FSDP2 "
            "would not gather them; leave it to the block or the model that holds it: fully_shard(block) for each "
            "block, then fully_shard(model)"
        )


def require_type(block: nn.Module, attribute: str, expected: Sequence[type], *, where: str) -> None:
    """Refuse a part of a block that is not exactly of a known type.

    Subclasses are refused too: a different attention with the same attribute names would run and be silently wrong.

    Args:
        block: The block, or another module.
        attribute: Name of the part.
        expected: The known types.
        where: Path of ``block``, for messages.

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

    It does not depend on the library that holds the weights: a packed projection has as many elements as three
    separate ones. Nor does it on quantization that keeps several weights in one byte.

    Args:
        root: The module that the anatomy describes.
        anatomy: Its anatomy.

    Returns:
        16 hexadecimal digits.
    """
    blocks = []
    for (path, block), width in zip(anatomy.blocks, anatomy.block_widths, strict=True):
        module = root.get_submodule(path)
        matrices = [_count_matrices(getattr(module, part)) for part in (block.attention, block.mlp)]
        blocks.append([width, *matrices, round(block.softmax_scale(getattr(module, block.attention)), 6)])
    facts = [anatomy.in_channels, list(anatomy.patch_size), anatomy.prefix_tokens, anatomy.output_width, blocks]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _count_matrices(module: nn.Module) -> int:
    """Count the elements of the matrices in a part of a block; those of a linear layer by its number of features."""
    count = 0
    for layer in module.modules():
        features = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
        # What is put around a layer, such as activation checkpointing, may show the layer's attributes as its own.
        leaf = not layer._modules
        linear = leaf and hasattr(layer, "weight") and all(isinstance(number, int) for number in features)
        count += features[0] * features[1] if linear else 0  # type: ignore[operator]
        own = layer.named_parameters(recurse=False)
        count += sum(p.numel() for name, p in own if p.ndim >= 2 and not (linear and name == "weight"))
    return count
