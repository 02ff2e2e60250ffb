"""Image models with a second attention in each block, over frames, in front of that over tokens."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy, BlockAnatomy, apply_part
from aim_adapters.config import AIMConfig
from aim_adapters.core import place_of
from aim_adapters.errors import UnsupportedModelError
from aim_adapters.layers import Adapter, add_temporal_embedding, new_temporal_embedding, zero_linear
from aim_adapters.ops.temporal_attention import temporal_attention
from aim_adapters.training.baseline_models import train_all


class FrameAttention(nn.Module):
    """The attention of a block over frames: ``x += out(attn(norm(x)))``; ``out`` starts at zero.

    Args:
        block: The block of the image model.
        anatomy: Its anatomy.
        num_frames: Frames of a clip that the block sees, T.
        out: What is applied to the attended values.
        copies: Whether norm and attention are copies of the block's, with weights of their own; else they are the
            block's.
    """

    def __init__(
        self, block: nn.Module, anatomy: BlockAnatomy, num_frames: int, *, out: nn.Module, copies: bool
    ) -> None:
        super().__init__()
        self.anatomy, self.num_frames, self.out = anatomy, num_frames, out
        self.copies: nn.Module | None = None
        if copies:  # under the names that they have in the block
            self.copies = nn.Module()
            after = anatomy.post_attention
            for name in (anatomy.attention, anatomy.pre_attention, *(after if isinstance(after, tuple) else (after,))):
                if name is not None:
                    setattr(self.copies, name, copy.deepcopy(getattr(block, name)))

    def before(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Attend over frames before a block runs: a hook of it.

        Args:
            block: The block.
            args: What it was called with: first its tokens ``[B*T, N, D]``.
        """
        x, parts, anatomy = args[0], block if self.copies is None else self.copies, self.anatomy
        attention: Any = getattr(parts, anatomy.attention)
        h = apply_part(parts, anatomy.pre_attention, x)
        q, k, v = anatomy.project_qkv(attention, h)  # [B*T, N, H, d]
        scale = anatomy.softmax_scale(attention)
        o = temporal_attention(q, k, v, num_frames=self.num_frames, scale=scale)
        branch = apply_part(parts, anatomy.post_attention, anatomy.project_out(attention, o, h))
        return (x + self.out(branch), *args[1:])


class FrameEntry(nn.Module):
    """The temporal embedding, which is added where tokens enter the first block.

    Args:
        num_frames: Frames of a clip that the blocks see, T.
        width: Width D of the tokens.
        place: Device and dtype.
    """

    def __init__(self, num_frames: int, width: int, place: dict[str, Any]) -> None:
        super().__init__()
        self.temporal_embedding = new_temporal_embedding(num_frames, width, **place)

    def before(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """Add the embedding before a block runs: a hook of it.

        Args:
            block: The block.
            args: What it was called with: first its tokens ``[B*T, N, D]``.
        """
        return (add_temporal_embedding(args[0], self.temporal_embedding), *args[1:])


def require_plain(model: nn.Module, anatomy: BackboneAnatomy, *, shared: bool) -> None:
    """Refuse image models whose blocks cannot attend over frames in this way.

    Args:
        model: The image model.
        anatomy: Its anatomy.
        shared: Whether both attentions are the block's own, which LoRA changes.

    Raises:
        UnsupportedModelError: It is one.
    """
    if anatomy.entry is None:
        raise UnsupportedModelError(
            f"this {type(model).__name__} attends within windows, with positions in them; expected a plain vision "
            "transformer, whose tokens all attend to one another"
        )
    if len({model.get_submodule(path) for path, _ in anatomy.blocks}) != len(anatomy.blocks):
        raise UnsupportedModelError("the model runs one block at several depths; each would attend over frames twice")
    attentions = {path: model.get_submodule(f"{path}.{parts.attention}") for path, parts in anatomy.blocks}
    whole = [path for path, attention in attentions.items() if isinstance(attention, nn.MultiheadAttention)]
    if shared and whole:
        raise UnsupportedModelError(
            f"LoRA would do nothing over frames in the attention of {whole[0]}: its nn.MultiheadAttention reads its "
            "weights without a call; load the same image model from timm or transformers"
        )


def add_frame_attention(
    model: nn.Module, anatomy: BackboneAnatomy, num_frames: int, *, adapters: AIMConfig | None
) -> nn.ModuleList:
    """Let the blocks of an image model attend over frames, and return what was added; it starts as it was.

    By copies, it is TimeSformer's divided attention (Bertasius et al., 2021): norm and attention with weights of their
    own, followed by a linear layer. TimeSformer starts that at zero in all blocks but the first; here in all, so that
    the whole starts as the image model. The [class] token of each frame attends over frames like the other tokens.
    Shared, it is AIM's temporal adaptation (Eq. 3): norm and attention of the block itself, followed by an adapter.

    Args:
        model: The image model.
        anatomy: Its anatomy.
        num_frames: Frames of a clip that the blocks see, T.
        adapters: Share norm and attention, with adapters of these settings; None: copy them.
    """
    width = anatomy.block_widths[0]
    first = model.get_submodule(anatomy.blocks[0][0])
    added: list[FrameEntry | FrameAttention] = [FrameEntry(num_frames, width, dict(place_of(first)))]
    first.register_forward_pre_hook(added[0].before)
    for path, parts in anatomy.blocks:
        block = model.get_submodule(path)
        place = place_of(block)
        out: nn.Module
        if adapters is None:
            out = zero_linear(width, width, **place)
        else:
            linear = adapters.adapter_activation == "none"
            out = Adapter(width, adapters.adapter_width(width), skip=False, linear=linear, **place)
        attention = FrameAttention(block, parts, num_frames, out=out, copies=adapters is None)
        if adapters is None:
            tokens = torch.zeros(num_frames, 1, width, **place)  # [B*T, N, D]
            train_all(attention, partial(_output, attention, block), tokens)
        block.register_forward_pre_hook(attention.before)
        added.append(attention)
    return nn.ModuleList(added)


def _output(attention: FrameAttention, block: nn.Module, tokens: Tensor) -> Tensor:
    output: Tensor = attention.before(block, (tokens,))[0]
    return output
