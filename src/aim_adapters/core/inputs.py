"""Looks at the first batch that a model reads, and an explanation of why a batch could not be read."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from aim_adapters.core.state import RootState, declared_tensors
from aim_adapters.errors import AIMError, InputError, StateError, warn
from aim_adapters.layers import suspicions
from aim_adapters.ops.device import exporting

_LOW = (torch.float16, torch.bfloat16)
# What PyTorch says of tensors of several dtypes or devices, in its many words.
_MIXED = re.compile(r"dtype|scalar ?type|same device|expected device|should be the same", re.IGNORECASE)


def look_at_first_batch(state: RootState, video: Tensor, frames: Tensor) -> None:
    """Warn about pixels or an order of frames that the image model cannot have been trained on.

    It happens once, at the first call that is no rehearsal of a compiler, an exporter or a CUDA graph.

    Args:
        state: The container of the root.
        video: What the model was given.
        frames: Its frames ``[B*T, C, H, W]``.
    """
    if type(frames) not in (Tensor, nn.Parameter) or frames.is_meta or rehearsing(frames):
        return
    state.unseen = False
    anatomy, num_frames, reorder = state.anatomy, state.num_frames, None
    if video.ndim == 4:
        reorder = f"video.unflatten(0, ({num_frames}, {len(frames) // num_frames})).transpose(0, 1)"
    elif len(video) == video.shape[1]:  # the shape does not say which is which
        reorder = "video.transpose(0, 1)"
    for message in suspicions(
        frames, num_frames=num_frames, mean=anatomy.image_mean, std=anatomy.image_std, reorder=reorder
    ):
        warn(f"{message} (said once, of the first batch)")


def explain_failure(root: nn.Module, video: Any, error: RuntimeError) -> AIMError | None:
    """Return an error in place of one that PyTorch raised about a batch, or None if it is not about the batch.

    Args:
        root: The wrapped root.
        video: What it was given.
        error: What PyTorch raised.
    """
    if isinstance(error, AIMError) or not isinstance(video, Tensor):
        return None
    state: Any = root.aim
    if not video.numel():
        return InputError(f"the batch is empty, got {list(video.shape)}; leave it out, as drop_last=True does")
    if not video.is_meta and any(parameter.is_meta for parameter in root.parameters()):
        return StateError(
            "some weights are on the meta device, without values. Accelerate's cpu_offload and disk_offload leave "
            "them there until the part that holds them is called, but adapted blocks read weights without a call; "
            "offload the whole model with accelerate.cpu_offload_with_hook(model), after "
            "accelerate.hooks.remove_hook_from_submodules(model)"
        )
    if video.ndim == 4 and len(video) % state.num_frames:
        return InputError(
            f"flat frames [B*T, C, H, W] must be whole clips of {state.num_frames}, got {len(video)} frames; leave out "
            "or repeat some, or call aim.set_num_frames(model, N) for clips of N"
        )
    size, given = state.anatomy.image_size, tuple(video.shape[-2:])
    if size is not None and video.ndim > 3 and given != size and "size of tensor" in str(error):
        return InputError(
            f"frames are {given[0]} x {given[1]} pixels, and the model reads {size[0]} x {size[1]}; resize or crop them"
        )
    patch = state.anatomy.patch_size
    if video.ndim > 3 and "invalid for input of size" in str(error) and (given[0] % patch[0] or given[1] % patch[1]):
        return InputError(
            f"frames are {given[0]} x {given[1]} pixels, and the model cuts them into patches of {patch[0]} x "
            f"{patch[1]}, which must divide them; resize or crop them"
        )
    path, block = state.anatomy.blocks[0]
    frozen = next(getattr(root.get_submodule(path), block.attention).parameters(), None)
    trained = next(iter(declared_tensors(root).values()), frozen)
    if frozen is None or trained is None or not _MIXED.search(str(error)):
        return None
    if video.device != frozen.device:
        return InputError(
            f"the video is on {video.device} and the model on {frozen.device}; pass video.to({str(frozen.device)!r})"
        )
    return _explain_dtypes(video, frozen.dtype, trained.dtype)


def _explain_dtypes(video: Tensor, frozen: torch.dtype, trained: torch.dtype) -> AIMError | None:
    device, held = video.device.type, (frozen, trained)
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if video.dtype == torch.float64 and torch.float64 not in held:
        other = torch.float32 if autocast else frozen  # autocast leaves float64 alone
        return InputError(f"the video is torch.float64 and the weights are {frozen}; pass video.to({other})")
    if autocast:
        cast = torch.get_autocast_dtype(device)
        for dtype in held:
            if dtype in _LOW and dtype != cast:
                return StateError(
                    f"weights are held in {dtype}, and autocast computes in {cast}; run the model under "
                    f"torch.autocast({device!r}, dtype={dtype})"
                )
        return None
    if frozen != trained:
        low = next((dtype for dtype in held if dtype in _LOW), frozen)
        return StateError(
            f"the frozen weights are held in {frozen} and what trains in {trained}, which needs autocast; run the "
            f"model under torch.autocast({device!r}, dtype={low})"
        )
    if video.dtype == frozen:
        return None
    cast_too = f", or run the model under torch.autocast({device!r}, dtype={video.dtype})"
    return InputError(
        f"the video is {video.dtype} and the weights are {frozen}; pass video.to({frozen})"
        + (cast_too if video.dtype in _LOW and frozen not in _LOW else "")
    )


def rehearsing(frames: Tensor) -> bool:
    """Return whether values cannot be read now: under tracers, transforms, dispatch modes and graph capture.

    Args:
        frames: The tensor whose values would be read.
    """
    return (
        exporting()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or (frames.is_cuda and torch.cuda.is_current_stream_capturing())
    )
