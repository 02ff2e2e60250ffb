"""What every clip shows, as integers: classes, paths of the camera and the nuisances of a clip, drawn from its index.

A clip is a crop of a photograph under a camera that pans, tilts, zooms and rolls, with sprites in front of it, and
exposure that drifts. Time is counted in ticks, ``TICKS`` a clip; a path gives the camera's four axes at each tick, so
that any number of frames samples the same motion.

Variant "order" has 12 classes, on pan and zoom, closed under reversal of time:

- one steady motion (4): "pan right" played backwards is "pan left", two pairs;
- one motion and then the other (4): "pan right, zoom in" played backwards is "zoom out, pan left", two pairs;
- back and forth (4): "zoom in, then out" played backwards is itself, so these are four groups of one.

Variant "composition" has those and 12 more, six pairs: the other four of one motion and then the other; steady tilt and
roll (4); and speed (4), where "pan right, faster" played backwards is "pan left, slower".

Clips of these variants come in scenes: as many consecutive clips as there are classes, one of each, that differ in
nothing but the motion. Testing has photographs of its own.

What else a scene has (place, jitter, sprites, drift of exposure) is distributed alike forwards and backwards. Hence a
model that does not see the order of frames cannot tell a class from its reverse, and can expect to be right in at most
half of the clips of a pair: in ``(8 / 2 + 4) / 12`` = 66.7 % of all clips of "order", and ``(20 / 2 + 4) / 24`` =
58.3 % of "composition": `Classes.order_blind_bound`. (It counts back and forth as told apart, since sprites and
exposure may tell the order of frames up to reversal; a model that does not use them is right in half of those, too.)

Variant "appearance" has 27 classes of 24 photographs: a class is a photograph, of which training and testing see
parts that do not overlap, under any motion of "order"; three photographs are two classes each, "zoom in" and "zoom
out", so that order decides a ninth of the clips: `Classes.order_blind_bound` is 24/27. Every clip is drawn by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.motion.photographs import Photographs

__all__ = ["DIFFICULTY", "VARIANTS", "Classes", "Difficulty", "Programs", "classes_of", "draw_programs", "reverse"]

Integers = NDArray[np.int64]

VARIANTS = ("order", "composition", "appearance")
SIMPLE = 12  # the first motions, those of "order"; all are of "composition"
PARTS = ("train", "test")
SEED = 20250
TICKS = 64
AXES = ("pan", "tilt", "zoom", "roll")
UNIT = 4096  # Lengths are in 1/4096 of the frame's side, zooms in 1/4096 of a doubling, gains in 1/4096.
TURN = 16384  # Angles are in 1/16384 of a turn.
SPRITES = 2
# Photographs of "appearance" whose direction of zoom is part of the class.
DIRECTED = 3
# Parts of a photograph's width that training and testing see in "appearance", in 1/4096; the gap is wider than what
# the coarsest level of a photograph's pyramid averages.
WHOLE, REGIONS = (0, UNIT), {"train": (0, 2662), "test": (2867, UNIT)}


class Difficulty(NamedTuple):
    """How strong motions and nuisances are: pairs are ranges; lengths in percent of the frame's side unless stated."""

    crop: tuple[float, float]  # the frame's side in percent of the photograph's short side
    pan: tuple[float, float] = (8, 35)  # within half a clip, of tilt too
    zoom: tuple[float, float] = (108, 160)  # factor within half a clip, in percent
    roll: tuple[float, float] = (6, 35)  # degrees within half a clip
    lean: float = 6  # the camera's own roll, up to so many degrees either way
    jitter: float = 0.5  # of every frame, up to so much either way, along both sides
    wander: float = 1  # of the whole clip at constant speed, up to so much either way, along both sides
    one_sprite: float = 30  # percent of the scenes; of the clips of "appearance"
    two_sprites: float = 10
    radius: tuple[float, float] = (10, 25)
    travel: float = 60  # of a sprite in a clip, up to so much either way, along both sides
    gain: tuple[float, float] = (80, 120)  # percent
    color: tuple[float, float] = (93, 107)  # percent, of each channel by itself
    drift: float = 20  # of exposure in a clip, up to so many percent either way


DIFFICULTY = {
    "order": Difficulty(crop=(35, 70)),
    "composition": Difficulty(crop=(35, 70)),
    "appearance": Difficulty(crop=(20, 34), gain=(60, 150), color=(80, 122)),
}


class Classes(NamedTuple):
    """Classes of a variant: names, and of each class its reverse in time (itself where nothing changes)."""

    names: tuple[str, ...]
    reverses: tuple[int, ...]

    @property
    def groups(self) -> tuple[int, ...]:
        """Number the groups of classes that are one another's reverse: the group of each class."""
        firsts = [min(label, other) for label, other in enumerate(self.reverses)]
        return tuple(sorted(set(firsts)).index(first) for first in firsts)

    @property
    def order_blind_bound(self) -> float:
        """The highest share of clips, all classes alike, expected to be right without seeing the order of frames."""
        return len(set(self.groups)) / len(self.names)


class Programs(NamedTuple):
    """What ``B`` clips show: int64 arrays, for the units see `UNIT` and `TURN`."""

    label: Integers  # [B]
    path: Integers  # [B], row of PATHS
    photo: Integers  # [B]
    region: Integers  # [B, 2]: left and right border in 1/4096 of the photograph's width
    crop: Integers  # [B]: side of the frame in 1/4096 of the photograph's short side
    place: Integers  # [B, 2]: where the crop lies, in 1/4096 of the room that there is
    amplitude: Integers  # [B, 4]: of each axis, within half a clip
    lean: Integers  # [B]
    wander: Integers  # [B, 2]
    jitter: Integers  # [B, TICKS + 1, 2]
    gain: Integers  # [B, 3]
    drift: Integers  # [B]
    radius: Integers  # [B, SPRITES]; 0: no sprite
    corner: Integers  # [B, SPRITES]: radius of its corners
    position: Integers  # [B, SPRITES, 2]: in the middle of the clip, from the middle of the frame
    travel: Integers  # [B, SPRITES, 2]
    texture: Integers  # [B, SPRITES]: photograph
    texture_place: Integers  # [B, SPRITES, 2]: in 1/4096 of the photograph's sides


def _signed(axis: str, sign: int) -> str:
    words = {"pan": ("left", "right"), "tilt": ("up", "down"), "zoom": ("out", "in"), "roll": ("left", "right")}
    return f"{axis} {words[axis][sign > 0]}"


def _path(axes: Sequence[tuple[str, Integers]]) -> Integers:
    """Return [TICKS + 1, 4] in 1/1024 of the amplitude, each axis around the middle of its range."""
    path = np.zeros((TICKS + 1, len(AXES)), np.int64)
    for axis, values in axes:
        path[:, AXES.index(axis)] = values - (values.min() + values.max()) // 2
    return path


def _paths() -> dict[str, Integers]:
    """Return the path of every motion by its name, those of "order" first."""
    tick, half = np.arange(TICKS + 1, dtype=np.int64), TICKS // 2
    steady, first, second = 32 * tick, 32 * np.minimum(tick, half), 32 * np.maximum(tick - half, 0)
    back_and_forth = first - second
    faster = 2048 * tick**2 // TICKS**2  # from a stop, as far as a steady motion
    slower = faster[-1] - faster[::-1]
    paths, signs = {}, (1, -1)

    def add(axis: str, sign: int, words: str, values: Integers) -> None:
        paths[_signed(axis, sign) + words] = _path([(axis, sign * values)])

    def add_both(one: str, sign: int, other: str, then: int) -> None:
        name = f"{_signed(one, sign)}, {_signed(other, then)}"
        paths[name] = _path([(one, sign * first), (other, then * second)])

    for axis in ("pan", "zoom"):
        for sign in signs:
            add(axis, sign, "", steady)
            add(axis, sign, f", then {_signed(axis, -sign).split()[1]}", back_and_forth)
    for equal in signs:  # both signs alike, which reversal keeps; then the others
        for sign in signs:
            add_both("pan", sign, "zoom", equal * sign)
            add_both("zoom", sign, "pan", equal * sign)
    for sign in signs:
        add("tilt", sign, "", steady)
        add("roll", sign, "", steady)
        add("pan", sign, ", faster", faster)
        add("pan", sign, ", slower", slower)
    return paths


_PATHS = _paths()
_NAMES = tuple(_PATHS)
_ZOOMS = ("zoom in", "zoom out")
PATHS = np.stack([*_PATHS.values()])


def _reverse_paths() -> tuple[int, ...]:
    """Find for each path the one that is it backwards."""
    return tuple(int(np.flatnonzero((path[::-1] == PATHS).all((1, 2)))[0]) for path in PATHS)


REVERSE_PATHS = _reverse_paths()


def classes_of(variant: str, photographs: Photographs) -> Classes:
    """Return the classes of a variant; those of "appearance" are named after photographs.

    Raises:
        ValueError: There is no such variant.
    """
    if variant in ("order", "composition"):
        count = SIMPLE if variant == "order" else len(_NAMES)
        return Classes(_NAMES[:count], REVERSE_PATHS[:count])
    if variant != "appearance":
        raise ValueError(f"variant must be one of {VARIANTS}, got {variant!r}")
    shown = [photographs.names[index] for index in photographs.classes]
    names = [f"{name}, {zoom}" for name in shown[:DIRECTED] for zoom in _ZOOMS] + shown[DIRECTED:]
    reverses = [label ^ 1 if label < 2 * DIRECTED else label for label in range(len(names))]
    return Classes(tuple(names), tuple(reverses))


class _Draws:
    """Numbers of each scene's own generator, the same on every machine and version: raw words of PCG64."""

    WORDS = 128

    def __init__(self, variant: str, part: str, scenes: Integers) -> None:
        key = (SEED, VARIANTS.index(variant), PARTS.index(part))
        unique, places = np.unique(scenes, return_inverse=True)
        words = np.zeros((len(unique), self.WORDS), np.uint64)
        for row, scene in enumerate(unique.tolist()):
            words[row] = np.random.PCG64(np.random.SeedSequence((*key, scene))).random_raw(self.WORDS)
        self.words = (words >> np.uint64(32)).astype(np.int64)[places]  # [B, WORDS]
        self.used = 0

    def between(self, low: int, high: int, *shape: int) -> Integers:
        """Draw integers from ``low`` to ``high``, both included, [B, *shape]."""
        count = int(np.prod(shape))
        return (low + (self._take(count) * (high - low + 1) >> 32)).reshape(-1, *shape)

    def _take(self, count: int) -> Integers:
        words = self.words[:, self.used : self.used + count]
        self.used += count
        return words

    def of(self, items: Sequence[int], *shape: int) -> Integers:
        """Draw from some integers."""
        return np.asarray(items, np.int64)[self.between(0, len(items) - 1, *shape)]

    def jitter(self, most: int) -> Integers:
        """Draw two numbers up to ``most`` either way for every tick from one word: [B, TICKS + 1, 2]."""
        words = self._take(TICKS + 1)
        both = np.stack((words & 0xFFFF, words >> 16), axis=-1)
        return (both * (2 * most + 1) >> 16) - most


def draw_programs(
    variant: str,
    part: str,
    clips: int,
    photographs: Photographs,
    *,
    start: int = 0,
    difficulty: Difficulty | None = None,
) -> Programs:
    """Draw clips ``start`` to ``start + clips`` of a part of a variant: a clip depends on its index alone.

    Classes take turns, so that they are balanced in the first clips, however many. A turn is a scene, whose clips
    differ in nothing but the motion; in "appearance" every clip is a scene.

    Raises:
        ValueError: There is no such variant.
    """
    classes = classes_of(variant, photographs)
    hard = difficulty or DIFFICULTY[variant]
    index = np.arange(start, start + clips, dtype=np.int64)
    scene, label = np.divmod(index, len(classes.names))
    draws = _Draws(variant, part, index if variant == "appearance" else scene)
    if variant != "appearance":
        path, own = label, photographs.of_split(part)
        photo, texture = draws.of(own), draws.of(own, SPRITES)
        # A sprite of the background's own photograph would be camouflage: take the next one.
        following = np.asarray(own)[(np.searchsorted(own, texture) + 1) % len(own)]
        texture = np.where(texture == photo[:, None], following, texture)
        region = WHOLE
    else:
        directed, some = label < 2 * DIRECTED, draws.between(0, SIMPLE - 1)
        path = np.where(directed, np.asarray([_NAMES.index(zoom) for zoom in _ZOOMS])[label % 2], some)
        photo = np.asarray(photographs.classes)[np.where(directed, label // 2, label - DIRECTED)]
        others = sorted(set(photographs.of_split(part)) - set(photographs.classes))
        texture, region = draws.of(others, SPRITES), REGIONS[part]
    percent, degree = UNIT / 100, TURN / 360
    pan, roll, radius = _scaled(hard.pan, percent), _scaled(hard.roll, degree), _scaled(hard.radius, percent)
    zoom = _scaled((math.log2(hard.zoom[0] / 100), math.log2(hard.zoom[1] / 100)), UNIT)
    lean, wander, travel = round(hard.lean * degree), round(hard.wander * percent), round(hard.travel * percent)
    drift = round(hard.drift * percent)
    amplitude = np.stack([draws.between(*span) for span in (pan, pan, zoom, roll)], axis=1)
    chance = draws.between(0, 99)[:, None]
    sprites = (chance < hard.one_sprite + hard.two_sprites).astype(np.int64) + (chance < hard.two_sprites)
    radii = draws.between(*radius, SPRITES)
    gain = draws.between(*_scaled(hard.gain, percent), 1) * draws.between(*_scaled(hard.color, percent), 3) // UNIT
    return Programs(
        label=label,
        path=path,
        photo=photo,
        region=np.broadcast_to(np.asarray(region, np.int64), (clips, 2)).copy(),
        crop=draws.between(*_scaled(hard.crop, percent)),
        place=draws.between(0, UNIT, 2),
        amplitude=amplitude,
        lean=draws.between(-lean, lean),
        wander=draws.between(-wander, wander, 2),
        jitter=draws.jitter(round(hard.jitter * percent)),
        gain=gain,
        drift=draws.between(-drift, drift),
        radius=np.where(np.arange(SPRITES) < sprites, radii, 0),
        corner=np.where(draws.between(0, 1, SPRITES) == 1, radii, radii // 3),
        position=draws.between(-UNIT // 2, UNIT // 2, SPRITES, 2),
        travel=draws.between(-travel, travel, SPRITES, 2),
        texture=texture,
        texture_place=draws.between(0, UNIT, SPRITES, 2),
    )


def _scaled(span: tuple[float, float], unit: float) -> tuple[int, int]:
    return round(span[0] * unit), round(span[1] * unit)


def reverse(programs: Programs, classes: Classes) -> Programs:
    """Return the programs of the same clips played backwards."""
    return programs._replace(
        label=np.asarray(classes.reverses)[programs.label],
        path=np.asarray(REVERSE_PATHS)[programs.path],
        wander=-programs.wander,
        jitter=programs.jitter[:, ::-1],
        drift=-programs.drift,
        travel=-programs.travel,
    )
