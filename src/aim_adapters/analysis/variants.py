"""A model with only some of its adapters, beside itself: the paper's Figure 4."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from aim_adapters.analysis.maps import Query, attention_maps
from aim_adapters.analysis.pictures import film_strip, overlay
from aim_adapters.arguments import require_flags
from aim_adapters.core import only_root
from aim_adapters.errors import InputError
from aim_adapters.video import require_frames

if TYPE_CHECKING:
    from PIL.Image import Image

# What the paper adds step by step; None: all that the model has.
VARIANTS: dict[str, tuple[str, ...] | None] = {
    "Frozen": (),
    "+ spatial": ("spatial",),
    "+ temporal": ("spatial", "temporal"),
    "AIM": None,
}


def variants_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the adapters that run in each of the `VARIANTS` of a model, without those that equal another one.

    Args:
        model: A wrapped model.

    Raises:
        TypeError: ``model`` is not a module.
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    there = only_root(model).state.config.components
    found: dict[str, tuple[str, ...]] = {}
    for name, components in VARIANTS.items():
        running = tuple(each for each in there if components is None or each in components)
        # A model without joint adapters is AIM with all that it has, and not "+ temporal".
        aim_itself = components is not None and running == there != ()
        if not aim_itself and running not in found.values():
            found[name] = running
    return found


def compare_variants(
    model: nn.Module,
    video: Tensor,
    frames: Tensor,
    *,
    block: int = -1,
    head: int | None = None,
    query: Query = "auto",
    rollout: bool = False,
    opacity: float = 0.6,
    colormap: str = "inferno",
    columns: int = 8,
    height: int = 160,
    dark: bool = False,
) -> Image:
    """Draw what the frozen model attends to, and what it does with the adapters added step by step (Figure 4).

    All rows have one scale, so that their colors compare.

    Args:
        model: A wrapped model.
        video: One clip as the model reads it, ``[1, T, C, H, W]`` or another of its layouts, normalized.
        frames: The same clip before normalization, uint8 ``[T, 3, H, W]``.
        block: The block whose attention is drawn.
        head: Its head; None: the mean over heads.
        query: The token that attends, as in `AttentionMaps.spatial`.
        rollout: Whether attention is followed through all blocks instead, as in `AttentionMaps.rollout`.
        opacity: As in `overlay`.
        colormap: As in `overlay`.
        columns: As in `film_strip`.
        height: As in `film_strip`.
        dark: As in `film_strip`.

    Returns:
        An RGB picture: a strip of the frames, and one of each of `variants_of` the model.

    Raises:
        TypeError: ``model`` is not a module.
        ConfigError: There is no such block, head or query, or a setting is invalid.
        InputError: The video is none that the model reads, has several clips, or is not that of ``frames``.
        StateError: The model is not wrapped, holds several wrapped models, or its adapters are disabled.
        UnsupportedModelError: As in `attention_maps`.
    """
    require_frames(frames)
    require_flags(rollout=rollout)
    kept = [] if rollout else [block]
    found: dict[str, Tensor] = {}
    for name, components in variants_of(model).items():
        maps = attention_maps(model, video, blocks=kept, components=components)
        drawn = maps.rollout(query) if rollout else maps.spatial(block, head=head, query=query)
        if len(drawn) != 1:
            raise InputError(f"video must be one clip, got {len(drawn)}; pass video[:1] and its frames")
        if len(frames) % drawn.shape[1]:
            raise InputError(
                f"frames must be those of the clip, got {len(frames)} for {drawn.shape[1]} maps; pass the frames that "
                "the model saw"
            )
        found[name] = drawn[0]
    # As one long clip, which has one scale.
    painted = overlay(
        frames.repeat(len(found), 1, 1, 1), torch.cat(list(found.values())), opacity=opacity, colormap=colormap
    )
    rows = dict(zip(found, painted.chunk(len(found)), strict=True))
    return film_strip({"Frames": frames, **rows}, columns=columns, height=height, dark=dark)
