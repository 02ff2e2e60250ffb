"""The descriptor of timm's ``SwinTransformer`` and ``SwinTransformerV2``."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy, BlockAnatomy, BlockParts, Derived, HeadAnatomy, Windows, require_type
from aim_adapters.backbones._parts import windowed_parts
from aim_adapters.backbones._swin import block_anatomy, tile_frame
from aim_adapters.backbones._timm import build, classifier, common_fields, hub_id, names
from aim_adapters.backbones.descriptor import Backbone


def read(model: nn.Module) -> BackboneAnatomy | None:
    """Return the anatomy of a timm ``SwinTransformer`` or ``SwinTransformerV2``; None for other models.

    Args:
        model: Any module.

    Raises:
        UnsupportedModelError: A block or its attention is of another type.
    """
    from timm.models import swin_transformer as v1
    from timm.models import swin_transformer_v2 as v2

    if not isinstance(model, (v1.SwinTransformer, v2.SwinTransformerV2)):
        return None
    version = 1 if isinstance(model, v1.SwinTransformer) else 2
    block_type = {1: v1.SwinTransformerBlock, 2: v2.SwinTransformerV2Block}[version]
    attention_type = {1: v1.WindowAttention, 2: v2.WindowAttention}[version]
    blocks: list[tuple[str, BlockAnatomy]] = []
    widths: list[int] = []
    layers: Any = model.layers
    for stage, layer in enumerate(layers):
        for index, block in enumerate(layer.blocks):
            path = f"layers.{stage}.blocks.{index}"
            require_type(layer.blocks, str(index), (block_type,), where=f"layers.{stage}.blocks")
            require_type(block, "attn", (attention_type,), where=path)
            # Judged by the index: in a stage that one window covers, timm sets the shift of every block to 0.
            blocks.append((path, block_anatomy(version, _attend, _parts, _tiles, shifted=index % 2 == 1, drops=_DROPS)))
            widths.append(block.dim)
    return BackboneAnatomy(
        family="timm_swin",
        blocks=tuple(blocks),
        block_widths=tuple(widths),
        entry=None,
        entry_side="input",
        norm="norm",
        heads=(HeadAnatomy("head.fc"),),
        output_width=model.num_features,
        prefix_tokens=0,
        **common_fields(model),
    )


_DROPS = ("drop_path1", "drop_path2")


def _attend(block: Any, h: Tensor) -> Tensor:
    out: Tensor = block._attn(h)
    return out


def _parts(block: Any, anatomy: BlockAnatomy) -> BlockParts:
    return windowed_parts(block, anatomy, _windows)


def _windows(block: Any) -> Windows:
    # timm fixes the shift when it builds the block, whatever the size of the frame at a call.
    attn, size = block.attn, tuple(block.window_size)
    tokens = size[0] * size[1]
    bias = Derived(
        lambda _: attn._get_rel_pos_bias().squeeze(0),
        (attn.relative_position_bias_table,),
        (attn.num_heads, tokens, tokens),
    )
    return Windows(size, tuple(block.shift_size), bias, always_shifted=True)


def _tiles(block: Any, rows: int, columns: int) -> Tensor:
    return tile_frame(rows, columns, block.window_size, block.shift_size, pads_first=False)


BACKBONE = Backbone(
    name="timm_swin",
    library="timm",
    describes="timm Swin Transformer v1 and v2",
    read=read,
    build=build,
    hub_id=hub_id,
    names=partial(names, "swin_transformer", "swin_transformer_v2"),
    classifier=classifier,
)
