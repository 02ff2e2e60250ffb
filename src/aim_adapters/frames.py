"""The number of frames of a wrapped model, and how it is changed."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from aim_adapters.core import enough_memory, only_root, require_bare, states
from aim_adapters.errors import CheckpointError, warn
from aim_adapters.layers import is_temporal, resize_temporal_bias, resize_temporal_embedding


def set_num_frames(model: nn.Module, num_frames: int) -> None:
    """Change the number of frames per clip, interpolating the temporal embedding or biases linearly.

    Nothing else in a wrapped model depends on the number of frames. The resized parameters are new objects: an
    optimizer made before still holds the old ones, so create a new one. A warning says this, and what was interpolated.

    Args:
        model: A wrapped model.
        num_frames: Frames per input clip, >= 1 and a multiple of the tubelet size.

    Raises:
        ConfigError: ``num_frames`` is not such a number.
        StateError: The model is not wrapped, holds several wrapped models, or is compiled, sharded or distributed.
    """
    wrapped = only_root(model)
    state = wrapped.state
    require_bare(model, "set_num_frames", "set the number of frames first, then compile, shard or distribute")
    config = dataclasses.replace(state.config, num_frames=num_frames)
    if config.attention_frames != state.num_frames:
        resized = [
            (container, name, parameter)
            for container in states(wrapped.root)
            for name, parameter in container.named_parameters(recurse=False)
            if is_temporal(name)
        ]
        with enough_memory(config):
            values = [resize_temporal(name, parameter, config.attention_frames) for _, name, parameter in resized]
        if resized:
            what = resized[0][1].replace("_", " ")
            warn(
                f"{what} interpolated from {state.num_frames} to {config.attention_frames} frames; an optimizer made "
                "before holds dead parameters: make it anew"
            )
        for (container, name, parameter), value in zip(resized, values, strict=True):
            container.register_parameter(name, nn.Parameter(value, parameter.requires_grad))
    state.config, state.num_frames = config, config.attention_frames


def resize_temporal(key: str, tensor: Tensor, num_frames: int) -> Tensor:
    """Interpolate a temporal embedding or bias to another number of frames.

    Args:
        key: Its key in a checkpoint, which tells the two apart.
        tensor: Temporal embedding ``[1, T, D]`` or relative temporal biases ``[2T-1, H]``.
        num_frames: The new T, after tubelets.

    Returns:
        The resized tensor, detached, in the dtype of ``tensor``.

    Raises:
        CheckpointError: The tensor has another number of dimensions.
    """
    rank = 3 if key.endswith("temporal_embedding") else 2
    if tensor.ndim != rank:
        raise CheckpointError(f"{key!r} must have {rank} dimensions, got the shape {list(tensor.shape)}")
    with torch.no_grad():
        resize = resize_temporal_embedding if key.endswith("temporal_embedding") else resize_temporal_bias
        return resize(tensor.detach(), num_frames)
