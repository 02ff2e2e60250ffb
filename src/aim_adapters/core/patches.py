"""Patches cut beforehand (NaFlex), with what says where they lie, as an image model reads them: one row per frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aim_adapters.anatomy import BackboneAnatomy
from aim_adapters.core.inputs import rehearsing
from aim_adapters.core.state import RootState
from aim_adapters.errors import InputError, UnsupportedModelError
from aim_adapters.layers import flatten_patches


def named_inputs(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name.

    Args:
        names: Names of the function's parameters, in order.
        args: Arguments by place.
        kwargs: Arguments by name.
    """
    # Cut to one length beforehand: the compiler of PyTorch 2.6 takes every zip for a strict one.
    return {**dict(zip(names[: len(args)], args[: len(names)], strict=True)), **kwargs}


def gives_patches(anatomy: BackboneAnatomy, given: Mapping[str, Any], first: str) -> bool:
    """Return whether a call gives patches cut beforehand, not images.

    Args:
        anatomy: The model's anatomy.
        given: The call's arguments by name.
        first: Name of the argument that holds images or patches.
    """
    if not anatomy.optional_patch_inputs:
        return bool(anatomy.patch_inputs)
    beside = anatomy.optional_patch_inputs[1:]
    return isinstance(given.get(first), Mapping) or any(given.get(name) is not None for name in beside)


def frame_rows(state: RootState, given: Mapping[str, Any], first: str) -> dict[str, Any]:
    """Return the arguments of a call that gives patches, with one row per frame.

    Of the frames that a tubelet averages, patches are averaged: they are linear in the pixels.

    Args:
        state: The container of the root.
        given: The call's arguments by name. Patches are ``[B, T, N, P]`` or ``[B*T, N, P]``, with the height, width and
            channels of a patch in place of P if need be; what says where they lie has the same first dimensions.
        first: Name of the argument that holds patches, or a dictionary of all.

    Raises:
        InputError: Shapes do not fit, or the frames of a clip differ in where their patches lie.
        UnsupportedModelError: An attention mask was given.
    """
    anatomy, config = state.anatomy, state.config
    held, key, names = {**given}, first, anatomy.patch_inputs
    if anatomy.optional_patch_inputs:
        own, *names = anatomy.optional_patch_inputs  # type: ignore[assignment]
        if isinstance(given.get(first), Mapping):
            held, key = {**given[first]}, own
    refuse_given(anatomy, held)
    if held.get(key) is None:
        raise InputError(f"patches cut beforehand are expected under {key!r}, got {', '.join(held) or 'nothing'}")
    patches, frames = held[key], config.num_frames
    cut = isinstance(patches, Tensor) and patches.ndim in (5, 6)  # patches of any size: height, width and channels
    rows = flatten_patches(patches.flatten(-3) if cut else patches, num_frames=frames)  # [B*T, N, P]
    for name in names:
        if isinstance(beside := held.get(name), Tensor):
            by_clip = beside.ndim > 2 and beside.shape[:2] == (len(rows) // frames, frames)
            beside = beside.flatten(0, 1) if by_clip else beside  # [B*T, ...]
            _require_one_place(name, beside, rows, frames)
            held[name] = beside[:: config.tubelet_size]
    if config.tubelet_size > 1:
        rows = rows.unflatten(0, (-1, config.tubelet_size)).mean(1)  # [B*T/tubelet, N, P]
    held[key] = rows.unflatten(-1, patches.shape[-3:]) if cut else rows
    return held if key == first else {**given, first: held}


def refuse_given(anatomy: BackboneAnatomy, given: Mapping[str, Any]) -> None:
    """Refuse what has no meaning along time.

    Raises:
        UnsupportedModelError: An attention mask was given.
    """
    for name in anatomy.refused_inputs:
        if given.get(name) is not None:
            raise UnsupportedModelError(f"{name} has no meaning along time; call the wrapped model without it")


def _require_one_place(name: str, beside: Tensor, rows: Tensor, frames: int) -> None:
    """Refuse frames of a clip whose patches lie at different places: attention over time joins tokens by number."""
    if beside.shape[0] != rows.shape[0]:
        raise InputError(
            f"{name} must have one row for each of the {len(rows)} frames, [B, T, ...] or [B*T, ...] as the patches, "
            f"got {list(beside.shape)}"
        )
    if torch.compiler.is_compiling() or beside.is_meta or rehearsing(beside):
        return
    clips = beside.unflatten(0, (-1, frames))
    differ = (clips != clips[:, :1]).flatten(1).any(1)  # [B]
    if differ.any():
        raise InputError(
            f"{name} differs between the frames of clip {int(differ.nonzero()[0])}: attention over time takes the "
            f"tokens at one place of all {frames} frames, so they must be cut into the same patches, padded alike; "
            "resize the frames of a clip to one size before they are cut"
        )
