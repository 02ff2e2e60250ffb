"""The blocks of Swin Transformers v1 and v2, as timm and torchvision build them.

As in the reference, the temporal pass runs at each location, in the unshifted blocks, with a relative bias along time
instead of an embedding; windows and the spatial bias do not apply to it. In v2 a branch ends after its norm.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_adapters.anatomy import Attend, BlockAnatomy, Parts, Tiles, require_called
from aim_adapters.backbones._attention import num_heads, project_out, unit_scale


def _split(attn: Any, packed: Tensor) -> Tensor:
    """Split packed projections ``[B*T, h, w, 3*D]`` into heads: ``[B*T, h*w, 3, H, d]``."""
    out: Tensor = packed.flatten(1, 2).unflatten(-1, (3, attn.num_heads, -1))
    return out


def _project_packed(attn: Any, h: Tensor) -> Tensor:
    return _split(attn, attn.qkv(h))


def _project_qkv(attn: Any, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = _project_packed(attn, h).unbind(-3)
    return q, k, v


def _project_qkv_cosine(attn: Any, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Project for cosine attention: normalized queries and keys, queries times the learned scale, keys without bias."""
    require_called(attn.qkv, "the qkv layer of an attention")
    if getattr(attn, "q_bias", None) is not None:
        bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
    else:
        bias = attn.qkv.bias
        if bias is not None:
            q_bias, k_bias, v_bias = bias.chunk(3)
            bias = torch.cat((q_bias, torch.zeros_like(k_bias), v_bias))
    q, k, v = _split(attn, F.linear(h, attn.qkv.weight, bias)).unbind(-3)
    scale = attn.logit_scale.clamp(max=math.log(100.0)).exp().squeeze(-1)  # [H, 1]
    return (F.normalize(q, dim=-1) * scale).to(v.dtype), F.normalize(k, dim=-1).to(v.dtype), v


def _scale(attn: Any) -> float:
    return float((attn.qkv.out_features // 3 // attn.num_heads) ** -0.5)  # the width d of a head may be more than D/H


def tile_frame(rows: int, columns: int, size: tuple[int, int], shift: tuple[int, int], *, pads_first: bool) -> Tensor:
    """Return the tokens of each window of a frame, as windows lie in a batch.

    Args:
        rows: Height of the frame in tokens.
        columns: Its width in tokens.
        size: Height and width of a window.
        shift: How far the windows are shifted down and to the right.
        pads_first: The frame is padded to whole windows before it is rolled by the shift (torchvision); else behind.

    Returns:
        int64 ``[W, M]``, -1 in place of padding.
    """
    index = torch.arange(rows * columns).view(rows, columns)
    padding = (0, -columns % size[1], 0, -rows % size[0])
    if pads_first:
        index = F.pad(index, padding, value=-1).roll((-shift[0], -shift[1]), (0, 1))
    else:
        index = F.pad(index.roll((-shift[0], -shift[1]), (0, 1)), padding, value=-1)
    tiles: Tensor = index.unflatten(1, (-1, size[1])).unflatten(0, (-1, size[0])).transpose(1, 2)
    return tiles.flatten(2).flatten(0, 1)  # [W, M]


def block_anatomy(
    version: int, attend: Attend, parts: Parts, tiles: Tiles, *, shifted: bool, drops: tuple[str, str]
) -> BlockAnatomy:
    """Return the anatomy of a block.

    Args:
        version: 1 or 2.
        attend: The library's own windowed attention.
        parts: Reads the branches of a block of version 1.
        tiles: Tells the windows of a block.
        shifted: Whether its windows are shifted (the odd blocks of a stage), so that it does not attend over time.
        drops: Attributes of the drop paths after attention and MLP.
    """
    return BlockAnatomy(
        attention="attn",
        mlp="mlp",
        pre_attention="norm1" if version == 1 else None,
        post_attention=drops[:1] if version == 1 else ("norm1", drops[0]),
        pre_mlp="norm2" if version == 1 else None,
        post_mlp=drops[1:] if version == 1 else ("norm2", drops[1]),
        project_qkv=_project_qkv if version == 1 else _project_qkv_cosine,
        project_out=project_out,
        project_packed=_project_packed if version == 1 else None,
        attend=attend,
        softmax_scale=_scale if version == 1 else unit_scale,
        heads=num_heads,
        parts=parts if version == 1 else None,
        temporal=not shifted,
        tiles=tiles,
    )
