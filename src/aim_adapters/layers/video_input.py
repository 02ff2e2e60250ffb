"""Videos in any accepted layout, turned into the flat frames that an image model reads."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor

from aim_adapters.errors import InputError
from aim_adapters.layers.input_advice import advise_dtype, advise_shape, advise_type


def flatten_video(
    video: Tensor,
    *,
    num_frames: int,
    channels: int,
    layout: str = "auto",
    tubelet_size: int = 1,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Tensor:
    """Return the frames of all clips as one batch of images.

    Args:
        video: Floating point, ``[B, T, C, H, W]``, ``[B, C, T, H, W]`` or already flat ``[B*T, C, H, W]``.
        num_frames: Frames per clip T.
        channels: Channels C.
        layout: ``"BTCHW"``, ``"BCTHW"``, or ``"auto"``: inferred from T and C.
        tubelet_size: Consecutive frames to average. The patch embedding is linear in the pixels, so this equals a patch
            embedding repeated over these frames and divided by their number.
        mean: Mean of each channel by which the model's images are normalized, for messages; None: unknown.
        std: Standard deviation of each channel, likewise.

    Returns:
        Images ``[B*T/tubelet_size, C, H, W]`` in the dtype of ``video``.

    Raises:
        InputError: ``video`` is not a floating-point tensor, its shape does not fit, or its layout is ambiguous.
    """
    if not isinstance(video, Tensor):
        raise InputError(f"a video must be a torch.Tensor, got {type(video).__name__}; {advise_type(video)}")
    if not video.is_floating_point():
        raise InputError(
            f"a video must be floating point and normalized, got {video.dtype}; {advise_dtype(video.dtype, mean, std)}"
        )
    got, expected = (f"got {list(video.shape)}", f"{num_frames} frames and {channels} channels")
    if video.ndim == 4:
        if video.shape[1] != channels or video.shape[0] % num_frames:
            raise InputError(
                f"flat frames must be [B*T, C, H, W] with {expected} (B*T a multiple of {num_frames}), {got}; "
                + advise_shape(video.shape, num_frames=num_frames, channels=channels, layout=layout)
            )
        flat = video
    elif video.ndim == 5:
        axes = _axes(video, num_frames, channels, layout, f"with {expected}, {got}")
        flat = rearrange(video, f"{axes} -> (b t) c h w")
    else:
        raise InputError(
            f"a video must be [B, T, C, H, W], [B, C, T, H, W] or [B*T, C, H, W] with {expected}, {got}; "
            + advise_shape(video.shape, num_frames=num_frames, channels=channels, layout=layout)
        )
    if tubelet_size == 1:
        return flat
    averaged: Tensor = flat.unflatten(0, (-1, tubelet_size)).mean(1)  # [B*T/tubelet, C, H, W]
    return averaged


def flatten_patches(patches: Tensor, *, num_frames: int) -> Tensor:
    """Return the frames of all clips as one batch of patches that were cut beforehand.

    Args:
        patches: Floating point, ``[B, T, N, P]`` or already flat ``[B*T, N, P]``.
        num_frames: Frames per clip T.

    Returns:
        Patches ``[B*T, N, P]``.

    Raises:
        InputError: ``patches`` is not a floating-point tensor, or its shape does not fit.
    """
    if not isinstance(patches, Tensor) or not patches.is_floating_point():
        got = patches.dtype if isinstance(patches, Tensor) else type(patches).__name__
        raise InputError(f"patches must be a floating-point tensor, got {got}; take them from the image processor")
    if patches.ndim == 4 and patches.shape[1] == num_frames:
        return rearrange(patches, "b t n p -> (b t) n p")
    if patches.ndim == 3 and patches.shape[0] % num_frames == 0:
        return patches
    raise InputError(
        f"patches must be [B, T, N, P] or [B*T, N, P] with {num_frames} frames, got {list(patches.shape)}; let the "
        f"image processor cut {num_frames} frames of each clip, or call aim.set_num_frames(model, N) for clips of N"
    )


def _axes(video: Tensor, num_frames: int, channels: int, layout: str, what: str) -> str:
    """Return the names of a 5-D video's dimensions, as einops takes them."""
    frames_first = video.shape[1] == num_frames and video.shape[2] == channels
    frames_second = video.shape[1] == channels and video.shape[2] == num_frames
    if layout == "auto" and frames_first and frames_second:
        raise InputError(
            f"the layout is ambiguous: as many frames as channels ({num_frames}); wrap the model with "
            "input_layout='BTCHW' or 'BCTHW', or pass flat frames [B*T, C, H, W]"
        )
    if frames_first and layout in ("auto", "BTCHW"):
        return "b t c h w"
    if frames_second and layout in ("auto", "BCTHW"):
        return "b c t h w"
    names = "[B, T, C, H, W] or [B, C, T, H, W]" if layout == "auto" else f"[{', '.join(layout)}]"
    advice = advise_shape(video.shape, num_frames=num_frames, channels=channels, layout=layout)
    raise InputError(f"a video must be {names} {what}; {advice}")
