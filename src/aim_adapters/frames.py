"""Change the number of frames of a wrapped model."""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch import Tensor, nn

from aim_adapters.errors import CheckpointError
from aim_adapters.guards import only_root, require_bare
from aim_adapters.layers.state import states
from aim_adapters.layers.temporal import is_temporal, resize_temporal_bias, resize_temporal_embedding


def set_num_frames(model: nn.Module, num_frames: int) -> None:
    """Change the number of frames per clip, interpolating the temporal embedding or biases linearly.

    Everything else of a wrapped model does not depend on the number of frames. Says in a warning what was
    interpolated. The resized parameters are new objects: make the optimiser afterwards.

    Args:
        model: A wrapped model.
        num_frames: Frames per input clip, >= 1; a multiple of the tubelet size.

    Raises:
        ConfigError: ``num_frames`` is not such a number.
        StateError: The model is not wrapped, holds several wrapped models, or is compiled, sharded or distributed.
    """
    _, _, shared = only_root(model)
    require_bare(model, "set_num_frames", "set the number of frames first, then compile, shard or distribute")
    config = dataclasses.replace(shared.config, num_frames=num_frames)
    if config.attention_frames != shared.num_frames:
        found = [
            (state, name, parameter)
            for state in states(model)
            for name, parameter in state._parameters.items()
            if parameter is not None and is_temporal(name)
        ]
        if found:
            what = found[0][1].replace("_", " ")
            warnings.warn(
                f"{what} interpolated from {shared.num_frames} to {config.attention_frames} frames", stacklevel=2
            )
        for state, name, parameter in found:
            resized = resize_temporal(name, parameter, config.attention_frames)
            state.register_parameter(name, nn.Parameter(resized, parameter.requires_grad))
    shared.config, shared.num_frames = config, config.attention_frames


def resize_temporal(key: str, tensor: Tensor, num_frames: int) -> Tensor:
    """Interpolate a tensor that depends on the number of frames.

    Args:
        key: Its key, which tells what it is.
        tensor: ``[1, T, D]`` or ``[2T-1, H]``.
        num_frames: The new T, as attention sees it.

    Raises:
        CheckpointError: The tensor has another number of dimensions.
    """
    rank = 3 if key.endswith("temporal_embedding") else 2
    if tensor.ndim != rank:
        raise CheckpointError(f"{key!r} must have {rank} dimensions, got the shape {list(tensor.shape)}")
    with torch.no_grad():
        resize = resize_temporal_embedding if key.endswith("temporal_embedding") else resize_temporal_bias
        return resize(tensor.detach(), num_frames)
