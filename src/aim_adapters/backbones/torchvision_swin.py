"""The descriptor of torchvision's ``SwinTransformer``, v1 and v2."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from aim_adapters.anatomy import (
    BackboneAnatomy,
    BlockAnatomy,
    BlockParts,
    Derived,
    HeadAnatomy,
    Windows,
    require_called,
    require_type,
)
from aim_adapters.backbones._parts import windowed_parts
from aim_adapters.backbones._swin import block_anatomy, tile_frame
from aim_adapters.backbones._torchvision import STATISTICS, build, classifier, labels, names
from aim_adapters.backbones.descriptor import Backbone
from aim_adapters.errors import UnsupportedModelError


def read(model: nn.Module) -> BackboneAnatomy | None:
    """Return the anatomy of a torchvision ``SwinTransformer``; None for other models.

    Args:
        model: Any module.

    Raises:
        UnsupportedModelError: A block or its attention is of another type.
    """
    from torchvision.models import swin_transformer as swin

    if not isinstance(model, swin.SwinTransformer):
        return None
    versions = {swin.SwinTransformerBlock: 1, swin.SwinTransformerBlockV2: 2}
    attention = {1: swin.ShiftedWindowAttention, 2: swin.ShiftedWindowAttentionV2}
    blocks: list[tuple[str, BlockAnatomy]] = []
    widths: list[int] = []
    features: Any = model.features
    for stage, layer in enumerate(features):
        if not isinstance(layer, nn.Sequential) or isinstance(layer[0], nn.Conv2d):
            continue  # the patch embedding, or the patch merging between two stages
        stage_blocks: Any = layer
        for index, block in enumerate(stage_blocks):
            path = f"features.{stage}.{index}"
            require_type(layer, str(index), tuple(versions), where=f"features.{stage}")
            version = versions[type(block)]
            require_type(block, "attn", (attention[version],), where=path)
            anatomy = block_anatomy(version, _attend, _parts, _tiles, shifted=index % 2 == 1, drops=_DROPS)
            blocks.append((path, anatomy))
            widths.append(block.attn.qkv.in_features)
    if not blocks:
        raise UnsupportedModelError("this torchvision SwinTransformer has no blocks")
    stem = features[0][0]
    return BackboneAnatomy(
        family="torchvision_swin",
        root="",
        input_name="x",
        blocks=tuple(blocks),
        block_widths=tuple(widths),
        entry=None,
        entry_side="input",
        norm="norm",
        heads=(HeadAnatomy("head"),),
        output_width=widths[-1],
        in_channels=stem.in_channels,
        patch_size=tuple(stem.kernel_size),
        prefix_tokens=0,
        class_count="num_classes",
        library="torchvision",
        **STATISTICS,
        build_arguments={"num_classes": model.head.out_features},
    )


_DROPS = ("stochastic_depth", "stochastic_depth")


def _attend(block: Any, h: Tensor) -> Tensor:
    for name in ("qkv", "proj"):  # torchvision reads their weights
        require_called(getattr(block.attn, name), f"the {name} layer of an attention")
    out: Tensor = block.attn(h)
    return out


def _parts(block: Any, anatomy: BlockAnatomy) -> BlockParts:
    return windowed_parts(block, anatomy, _windows)


def _windows(block: Any) -> Windows:
    attn, size, shift = block.attn, block.attn.window_size, block.attn.shift_size
    tokens = size[0] * size[1]
    bias = Derived(
        lambda _: attn.get_relative_position_bias().squeeze(0),
        (attn.relative_position_bias_table,),
        (attn.num_heads, tokens, tokens),
    )
    return Windows((size[0], size[1]), (shift[0], shift[1]), bias)


def _tiles(block: Any, rows: int, columns: int) -> Tensor:
    size, shift = block.attn.window_size, block.attn.shift_size
    # A window as high or wide as the frame, padded, is not shifted.
    moved = (0 if size[0] >= rows else shift[0], 0 if size[1] >= columns else shift[1])
    return tile_frame(rows, columns, (size[0], size[1]), moved, pads_first=True)


BACKBONE = Backbone(
    name="torchvision_swin",
    library="torchvision",
    describes="torchvision SwinTransformer v1 and v2",
    read=read,
    build=build,
    labels=labels,
    names=partial(names, "swin_"),
    classifier=classifier,
)
