"""Pictures of attention: maps over the frames of a clip, and film strips of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_adapters.analysis.colormaps import COLORMAPS, colors_of
from aim_adapters.arguments import require_choice, require_flags, require_integer, require_number, require_text, shown
from aim_adapters.errors import ConfigError, InputError
from aim_adapters.video import require_frames

if TYPE_CHECKING:
    from PIL.Image import Image

_FULL = 0.99  # of the values are below the one that has the full color
_WIDEST = 2**16  # pixels of a film strip
_LIGHT, _DARK = ("#ffffff", "#1d2433", "#5b6275"), ("#14181f", "#f2f4f8", "#a3abbd")  # paper, names, numbers


def overlay(
    frames: Tensor, maps: Tensor, *, opacity: float = 0.6, colormap: str = "inferno", scale: str = "clip"
) -> Tensor:
    """Return frames with maps over them: the more attention, the more color; where there is least, the frame is seen.

    Args:
        frames: One clip as the model saw it, cropped and resized, uint8 ``[T, 3, H, W]``.
        maps: Its maps ``[T, rows, cols]``, such as ``maps.spatial()[0]`` of an `AttentionMaps`; of any grid, which is
            resized to the frames. Fewer maps than frames, as of tubelets, stand for T/maps frames each.
        opacity: How much the color covers where there is most attention, from 0 to 1.
        colormap: ``"inferno"``, ``"viridis"``, or ``"difference"`` for values below and above zero.
        scale: Where least and most are looked for: ``"clip"``, so that the frames can be compared; or ``"frame"``, in
            each frame by itself.

    Returns:
        uint8 ``[T, 3, H, W]``, on the device of ``frames``.

    Raises:
        ConfigError: A setting is invalid.
        InputError: ``frames`` or ``maps`` have another shape or dtype, do not fit, or hold NaN or infinity.
    """
    opacity = require_number("opacity", opacity, low=0)
    if opacity > 1:
        raise ConfigError(f"opacity must be from 0 to 1, got {shown(opacity)}")
    require_choice("colormap", colormap, COLORMAPS)
    require_choice("scale", scale, ("clip", "frame"))
    require_frames(frames)
    _require_maps(maps, len(frames))
    values = maps.detach().to(frames.device, torch.float32)
    flat = values.flatten()[None] if scale == "clip" else values.flatten(1)  # [1 or M, values of one scale]
    least = torch.zeros_like(flat[:, :1]) if colormap == "difference" else flat.amin(1, keepdim=True)
    # The few patches with by far the most attention, which many models have, would leave all others without color.
    rank = math.ceil(_FULL * flat.shape[1])
    most = (flat - least).abs().kthvalue(rank, dim=1, keepdim=True).values.clamp_min(torch.finfo(torch.float32).tiny)
    strength = ((flat - least) / most).clamp(-1, 1).view_as(values)
    strength = F.interpolate(strength[:, None], frames.shape[2:], mode="bilinear", antialias=True)[:, 0].clamp(-1, 1)
    strength = strength.repeat_interleave(len(frames) // len(maps), dim=0)  # [T, H, W]
    painted = torch.empty_like(frames)
    for frame, share, out in zip(frames, strength, painted, strict=True):  # one at a time, as floats take more memory
        color = colors_of((share + 1) / 2 if colormap == "difference" else share, colormap).movedim(-1, 0)  # [3, H, W]
        out.copy_(torch.lerp(frame.float(), color, opacity * share.abs()).round())
    return painted


def film_strip(
    rows: Mapping[str, Tensor], *, columns: int = 8, height: int = 160, dark: bool = False, numbers: bool = True
) -> Image:
    """Draw clips as strips of frames, one under the other, each under its name.

    Args:
        rows: Frames uint8 ``[T, 3, H, W]`` by name, all of one shape.
        columns: The most frames of a strip; of longer clips so many are taken, evenly spaced.
        height: Height of a frame in the picture, in pixels.
        dark: Whether the paper is dark, for a dark page.
        numbers: Whether the number of each frame in its clip is written below it, from 0.

    Returns:
        An RGB picture; its ``save`` writes PNG, JPEG or WebP.

    Raises:
        ConfigError: A setting is invalid, or the picture would be wider than 65536 pixels.
        InputError: A clip has another shape than the first, or is none.
    """
    from PIL import Image, ImageDraw, ImageFont

    columns = require_integer("columns", columns, low=1)
    height = require_integer("height", height, low=16, high=4096)
    require_flags(dark=dark, numbers=numbers)
    _require_rows(rows)
    clips = list(rows.values())
    total, _, tall, wide = clips[0].shape
    width = max(1, round(height * wide / tall))
    taken = torch.linspace(0, total - 1, min(columns, total)).round().int().tolist()
    size = max(12, height // 9)  # of letters
    gap, line = max(2, height // 40), round(1.5 * size)
    across = len(taken) * (width + gap) + gap
    down = gap + len(clips) * (line + height + gap) + (line if numbers else 0)
    if max(across, down) > _WIDEST:
        raise ConfigError(f"the picture would have {across} x {down} pixels; pass fewer columns= or a smaller height=")
    paper, ink, quiet = _DARK if dark else _LIGHT
    picture = Image.new("RGB", (across, down), paper)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
    top = gap
    for name, clip in rows.items():
        text = _shortened(name, lambda text: draw.textlength(text, font), across - 2 * gap)
        draw.text((gap, top + line // 2), text, ink, font, anchor="lm")
        top += line
        for column, index in enumerate(taken):
            cell = Image.fromarray(clip[index].permute(1, 2, 0).contiguous().cpu().numpy())
            picture.paste(cell.resize((width, height), Image.Resampling.LANCZOS), (gap + column * (width + gap), top))
        top += height + gap
    if numbers:
        for column, index in enumerate(taken):
            middle = gap + column * (width + gap) + width // 2
            draw.text((middle, top - gap + line // 2), str(index), quiet, font, anchor="mm")
    return picture


def _shortened(name: str, length: Any, most: int) -> str:
    """Return a name as one line that is no longer than so many pixels."""
    text = " ".join(name.split())
    if length(text) <= most:
        return text
    while text and length(text + "…") > most:
        text = text[:-1]
    return text + "…"


def _require_maps(maps: object, frames: int) -> None:
    expected = f"maps must be a floating-point tensor [T, rows, cols] for {frames} frames"
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        raise InputError(f"{expected}, got {maps.dtype if isinstance(maps, Tensor) else shown(maps)}")
    if maps.ndim != 3 or not maps.numel():
        advice = "; pass the maps of one clip, maps[0]" if maps.ndim == 4 else ""
        raise InputError(f"{expected}, got the shape {list(maps.shape)}{advice}")
    if frames % len(maps):
        raise InputError(f"{expected}, got {len(maps)} maps; pass the frames that the model saw, as many or a multiple")
    if not maps.isfinite().all():
        raise InputError(f"{expected}, got values that are NaN or infinite; look at the clip and at the model's output")


def _require_rows(rows: object) -> None:
    if not isinstance(rows, Mapping):
        raise InputError(f"rows must be frames by the name of their strip, {{name: frames}}, got {type(rows).__name__}")
    if not rows:
        raise InputError("rows must be frames by the name of their strip, got none")
    first: Any = None
    for name, clip in rows.items():
        require_text("each name in rows", name)
        require_frames(clip)
        first = clip if first is None else first
        if clip.shape != first.shape:
            raise InputError(
                f"all rows must have one shape, got {list(first.shape)} and, for {shown(name)}, {list(clip.shape)}; "
                "take the same frames and size for each"
            )
