"""The descriptor of timm's ``Beit`` (BEiT, BEiT v2), whose relative position bias is not applied along time."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy, HeadAnatomy, Positions, require_type
from aim_adapters.backbones._timm import block_anatomy, build, classifier, common_fields, final_norm, hub_id, names
from aim_adapters.backbones.descriptor import Backbone


def read(model: nn.Module) -> BackboneAnatomy | None:
    """Return the anatomy of a timm ``Beit``; None for other models.

    Args:
        model: Any module.

    Raises:
        UnsupportedModelError: A block or its attention is of another type.
    """
    from timm.models.beit import Attention, Beit, Block

    if not isinstance(model, Beit):
        return None
    for index, block in enumerate(model.blocks):
        require_type(model.blocks, str(index), (Block,), where="blocks")
        require_type(block, "attn", (Attention,), where=f"blocks.{index}")
    return BackboneAnatomy(
        family="timm_beit",
        blocks=tuple((f"blocks.{i}", _BLOCK) for i in range(len(model.blocks))),
        block_widths=(model.embed_dim,) * len(model.blocks),
        entry="pos_drop",
        entry_side="output",
        norm=final_norm(model),
        heads=(HeadAnatomy("head"),),
        output_width=model.embed_dim,
        prefix_tokens=model.num_prefix_tokens,
        **common_fields(model),
    )


def _attend(block: Any, h: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
    out: Tensor = block.attn(h, shared_rel_pos_bias=shared_rel_pos_bias)
    return out


def _positions(block: Any, shared_rel_pos_bias: Tensor | None = None) -> Positions | None:
    bias = shared_rel_pos_bias
    if block.attn.relative_position_bias_table is not None:
        own = block.attn._get_rel_pos_bias()
        bias = own if bias is None else own + bias
    return None if bias is None else Positions(bias=bias.view(bias.shape[-3:]))  # [H, N, N]


_BLOCK = block_anatomy(_attend, scales=("gamma_1", "gamma_2"), positions=_positions)

BACKBONE = Backbone(
    name="timm_beit",
    library="timm",
    describes="timm Beit (BEiT, BEiT v2)",
    read=read,
    build=build,
    hub_id=hub_id,
    names=partial(names, "beit"),
    classifier=classifier,
)
