"""Frames of clips from their programs, in integer arithmetic only: the same to the bit on a CPU and on a GPU."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.motion.photographs import Photographs
from benchmarks.motion.programs import PATHS, SPRITES, TICKS, TURN, UNIT, Integers, Programs

__all__ = ["render"]

# Coordinates have 16 fractional bits.
ONE = 65536
# The level of a photograph's pyramid is the finest of which a frame's pixel spans at most so much.
STEP = round(1.4 * ONE)
# The middle of a crop keeps so far from borders, in 1/1024 of the crop's side; what a motion shows beyond is mirrored.
MARGIN = 660
PIXELS = {"cpu": 2**20, "cuda": 2**25}
COS = np.asarray([round(math.cos(2 * math.pi * angle / TURN) * 16384) for angle in range(TURN)], np.int64)
SIN = np.roll(COS, TURN // 4)
# 2 ** (x / 4096) for x from -8192 to 8192.
POWERS = np.asarray([round(2 ** (power / UNIT) * ONE) for power in range(-2 * UNIT, 2 * UNIT + 1)], np.int64)


class _View(NamedTuple):
    """How frames look into a photograph's pyramid, ``N`` of them: integers [N], lengths in pixels of the level.

    The frame's pixel ``(u, v)``, in half pixels from its middle, shows ``x = x0 + (a u - b v) / 2``,
    ``y = y0 + (b u + a v) / 2``.
    """

    a: Tensor
    b: Tensor
    x: Tensor
    y: Tensor
    left: Tensor
    right: Tensor
    height: Tensor
    width: Tensor
    offset: Tensor


def render(photographs: Photographs, programs: Programs, *, frames: int = 8, size: int = 84) -> Tensor:
    """Render clips on the device of the photographs.

    Args:
        photographs: what backgrounds and sprites are cut from.
        programs: of ``B`` clips.
        frames: frames per clip, a divisor of 32.
        size: side of a frame in pixels.

    Returns:
        uint8 [B, frames, 3, size, size], RGB.

    Raises:
        ValueError: ``frames`` does not divide 32, or ``size`` is not positive.
    """
    if frames < 1 or 32 % frames or size < 1:
        raise ValueError(f"frames must divide 32 and size be positive, got frames={frames}, size={size}")
    count, device = len(programs.label), photographs.texels.device
    out = torch.empty(count, frames, 3, size, size, dtype=torch.uint8, device=device)
    step = max(1, PIXELS["cuda" if device.type == "cuda" else "cpu"] // (frames * size * size))
    for start in range(0, count, step):
        some = Programs(*(values[start : start + step] for values in programs))
        out[start : start + step] = _render(photographs, some, frames, size)
    return out


def _render(photographs: Photographs, programs: Programs, frames: int, size: int) -> Tensor:
    device = photographs.texels.device
    tick = (2 * np.arange(frames) + 1) * (TICKS // (2 * frames))
    colors = _sample(photographs, _camera(photographs, programs, tick, size), size)
    for sprite in range(SPRITES):
        shown = np.flatnonzero(np.repeat(programs.radius[:, sprite] > 0, frames))
        if len(shown):
            view, shape = _sprite(photographs, programs, sprite, tick, size)
            view = _View(*(values[shown] for values in view))
            index = torch.from_numpy(shown).to(device)
            below = colors[index]
            cover = _cover(shape[shown].to(device, torch.int32), size)[:, None]
            colors[index] = below + ((_sample(photographs, view, size) - below) * cover + 128 >> 8)
    drift = programs.drift[:, None] * (tick - TICKS // 2) // TICKS
    gain = programs.gain[:, None] * (UNIT + drift[..., None]) // UNIT
    gains = torch.from_numpy(gain.reshape(-1, 3, 1, 1)).to(device, torch.int32)
    shown_colors = (colors * gains + UNIT // 2 >> 12).clamp_(0, 255).to(torch.uint8)
    return shown_colors.view(-1, frames, 3, size, size)


def _camera(photographs: Photographs, programs: Programs, tick: Integers, size: int) -> _View:
    """Return how each frame, clip by clip, looks at its background."""
    height, width = (photographs.sizes[programs.photo, axis] for axis in (0, 1))
    borders = programs.region * width[:, None] // UNIT
    crop = programs.crop * np.minimum(height, width) * 16 // UNIT  # in 1/16 pixel
    middle = []
    for axis, (low, high) in enumerate(((borders[:, 0], borders[:, 1]), (0 * height, height))):
        room = np.maximum((high - low) * ONE - 2 * crop * (ONE // 16) * MARGIN // 1024, 0)
        middle.append(((low + high) * ONE - room) // 2 + room * programs.place[:, axis] // UNIT)
    pose = (programs.amplitude[:, None] * PATHS[programs.path][:, tick]) // 1024  # [B, T, 4]
    wander = programs.wander[:, None] * (tick[:, None] - TICKS // 2) // TICKS
    shift = pose[..., :2] + wander + programs.jitter[:, tick]
    base = crop * (ONE // 16) // size
    scale = base[:, None] * POWERS[2 * UNIT - pose[..., 2]] // ONE
    angle = (programs.lean[:, None] + pose[..., 3]) % TURN
    # A shift of 1/4096 of the frame's side is crop / 65536 pixels, hence `crop` in coordinates.
    x, y = (middle[axis][:, None] + shift[..., axis] * crop[:, None] for axis in (0, 1))
    level = _level(photographs, programs.photo, base)
    return _view(photographs, programs.photo, level, borders, scale=scale, angle=angle, x=x, y=y)


def _sprite(
    photographs: Photographs, programs: Programs, sprite: int, tick: Integers, size: int
) -> tuple[_View, Tensor]:
    """Return how each frame looks at a sprite's texture, and its shape [N, 4]: middle (x, y), radius, corner."""
    photo = programs.texture[:, sprite]
    height, width = (photographs.sizes[photo, axis] for axis in (0, 1))
    borders = np.stack((0 * width, width), axis=1)
    moved = programs.travel[:, None, sprite] * (tick[:, None] - TICKS // 2) // TICKS
    middle = (programs.position[:, None, sprite] + moved) * size * 32 // UNIT  # [B, T, 2], in 1/32 pixel
    radius, corner = (values[:, sprite] * size * 32 // UNIT for values in (programs.radius, programs.corner))
    # A frame's side spans 3/4 of the photograph's short side, so that a sprite shows a part of some meaning.
    base = np.minimum(height, width) * 3 * ONE // (4 * size)
    place = [side * ONE * programs.texture_place[:, sprite, axis] // UNIT for axis, side in enumerate((width, height))]
    scale = np.broadcast_to(base[:, None], middle.shape[:2])
    x, y = (place[axis][:, None] - scale * middle[..., axis] // 32 for axis in (0, 1))
    level = _level(photographs, photo, base)
    view = _view(photographs, photo, level, borders, scale=scale, angle=0 * scale, x=x, y=y)
    sides = [np.broadcast_to(values[:, None], scale.shape) for values in (radius, corner)]
    shape = np.stack((middle[..., 0], middle[..., 1], *sides), axis=-1).reshape(-1, 4)
    return view, torch.from_numpy(shape)


def _level(photographs: Photographs, photo: Integers, scale: Integers) -> Integers:
    """Return the level of the pyramid for so many pixels of the photograph per pixel of the frame: one a clip."""
    level = sum((scale > STEP << finer for finer in range(photographs.levels - 1)), np.zeros_like(scale))
    return np.minimum(level, photographs.levels - 1)


def _view(
    photographs: Photographs,
    photo: Integers,
    level: Integers,
    borders: Integers,
    *,
    scale: Integers,
    angle: Integers,
    x: Integers,
    y: Integers,
) -> _View:
    shift = level[:, None]
    a, b = scale * COS[angle] >> 14 + shift, scale * SIN[angle] >> 14 + shift
    height, width, offset = (photographs.table[photo, level, entry] for entry in range(3))
    left, right = -(-borders[:, 0] >> level), borders[:, 1] >> level
    values = (a, b, x >> shift, y >> shift, left[:, None], right[:, None], height[:, None], width[:, None])
    every = [np.broadcast_to(one, scale.shape).reshape(-1) for one in (*values, offset[:, None])]
    return _View(*(torch.from_numpy(one.copy()) for one in every))


def _sample(photographs: Photographs, view: _View, size: int) -> Tensor:
    """Look up frames by bilinear interpolation, mirrored at borders: int32 [N, 3, size, size], 0 to 255."""
    device = photographs.texels.device
    half = (2 * torch.arange(size, device=device, dtype=torch.int32) + 1 - size).view(1, size, 1)
    u, v = half.view(1, 1, size), half
    a, b, x, y, left, right, height, width = (values.to(device, torch.int32).view(-1, 1, 1) for values in view[:-1])
    offset = view.offset.to(device).view(-1, 1, 1)
    # Pixel centers lie at half coordinates.
    xs = x + (a * u - b * v >> 1) - ONE // 2
    ys = y + (b * u + a * v >> 1) - ONE // 2
    columns = [left + _mirror((xs >> 16) + tap - left, right - left) for tap in (0, 1)]
    rows = [_mirror((ys >> 16) + tap, height) for tap in (0, 1)]
    across, down = xs >> 8 & 255, ys >> 8 & 255
    corners = [[photographs.texels[offset + (row * width + column)] for column in columns] for row in rows]
    out = torch.empty(len(xs), 3, size, size, dtype=torch.int32, device=device)
    for channel in range(3):
        above, below = ((pair[0] >> 8 * channel & 255) * (256 - across) + (pair[1] >> 8 * channel & 255) * across
                        for pair in corners)  # fmt: skip
        out[:, channel] = above * (256 - down) + below * down + ONE // 2 >> 16
    return out


def _mirror(index: Tensor, length: Tensor) -> Tensor:
    """Reflect indices at both ends of a length."""
    index = index.remainder(2 * length)
    return torch.minimum(index, 2 * length - 1 - index)


def _cover(shape: Tensor, size: int) -> Tensor:
    """Return how much of each pixel a rounded square or disc covers: [N, size, size] in 1/256."""
    x, y, radius, corner = (values.view(-1, 1, 1) for values in shape.unbind(1))
    places = (2 * torch.arange(size, device=shape.device, dtype=torch.int32) + 1 - size) * 16  # in 1/32 pixel
    straight = radius - corner
    across = ((places.view(1, 1, size) - x).abs() - straight).clamp_min(0)
    down = ((places.view(1, size, 1) - y).abs() - straight).clamp_min(0)
    # Near the edge, the distance to it is (corner^2 - distance^2) / (2 corner); half a pixel is 16.
    corner = corner.clamp_min(1)
    inside = torch.minimum(corner**2 - across**2 - down**2, 32 * corner)
    return 128 + torch.maximum(inside, -32 * corner) * 4 // corner
