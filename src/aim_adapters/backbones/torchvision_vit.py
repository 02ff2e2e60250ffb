"""The descriptor of torchvision's ``VisionTransformer``."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy, BlockAnatomy, HeadAnatomy, require_type
from aim_adapters.backbones._attention import (
    inverse_root_scale,
    num_heads,
    packed_weights,
    project_out,
    project_packed_weights,
    require_plain_multi_head,
)
from aim_adapters.backbones._parts import plain_parts
from aim_adapters.backbones._torchvision import STATISTICS, build, classifier, labels, names
from aim_adapters.backbones.descriptor import Backbone


def read(model: nn.Module) -> BackboneAnatomy | None:
    """Return the anatomy of a torchvision ``VisionTransformer``; None for other models.

    Args:
        model: Any module.

    Raises:
        UnsupportedModelError: A block or its attention is of another type.
    """
    from torchvision.models.vision_transformer import EncoderBlock, VisionTransformer

    if not isinstance(model, VisionTransformer):
        return None
    layers = model.encoder.layers
    for name, block in layers.named_children():
        path = f"encoder.layers.{name}"
        require_type(layers, name, (EncoderBlock,), where="encoder.layers")
        require_type(block, "self_attention", (nn.MultiheadAttention,), where=path)
        require_plain_multi_head(block.self_attention, where=f"{path}.self_attention")
    stem = next(module for module in model.conv_proj.modules() if isinstance(module, nn.Conv2d))
    return BackboneAnatomy(
        family="torchvision_vit",
        root="",
        input_name="x",
        blocks=tuple((f"encoder.layers.{name}", _BLOCK) for name, _ in layers.named_children()),
        block_widths=(model.hidden_dim,) * len(layers),
        entry="encoder.dropout",
        entry_side="input",
        norm="encoder.ln",
        # The last layer, not the Sequential around it, which would run the container added to it.
        heads=(HeadAnatomy("heads.head"),),
        output_width=model.representation_size or model.hidden_dim,
        in_channels=stem.in_channels,
        patch_size=(model.patch_size, model.patch_size),
        prefix_tokens=1,
        patch_conv="conv_proj" if isinstance(model.conv_proj, nn.Conv2d) else None,
        class_token_only=_reads_class_token if type(model) is VisionTransformer else None,
        image_methods=("_process_input",),  # private, but the way to its tokens that users know
        class_count="num_classes",
        library="torchvision",
        **STATISTICS,
        build_arguments={"num_classes": model.num_classes, "image_size": model.image_size},
        image_size=(model.image_size, model.image_size),
    )


def _reads_class_token(_: Any) -> bool:
    return True


def _attend(block: Any, h: Tensor) -> Tensor:
    out: Tensor = block.self_attention(h, h, h, need_weights=False)[0]
    return out


_BLOCK = BlockAnatomy(
    attention="self_attention",
    mlp="mlp",
    pre_attention="ln_1",
    post_attention="dropout",
    pre_mlp="ln_2",
    post_mlp=None,
    project_qkv=project_packed_weights,
    project_out=project_out,
    project_packed=packed_weights,
    attend=_attend,
    softmax_scale=inverse_root_scale,
    heads=num_heads,
    fused_spatial=True,
    parts=plain_parts,
)

BACKBONE = Backbone(
    name="torchvision_vit",
    library="torchvision",
    describes="torchvision VisionTransformer",
    read=read,
    build=build,
    labels=labels,
    names=partial(names, "vit_"),
    classifier=classifier,
)
