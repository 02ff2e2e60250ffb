from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.motion.programs import (
    DIFFICULTY,
    PARTS,
    PATHS,
    UNIT,
    VARIANTS,
    Integers,
    Programs,
    classes_of,
    draw_programs,
    reverse,
)
from tests.benchmarks.scenes import CLASSES, apart, scenes

PHOTOGRAPHS = scenes()
MOTIONS = ("order", "composition")  # the variants whose classes are motions
PROPERTY = settings(deadline=None, max_examples=25)
variants, parts = st.sampled_from(VARIANTS), st.sampled_from(PARTS)


def same(one: Programs, other: Programs) -> bool:
    return all(np.array_equal(*values) for values in zip(one, other, strict=True))


def test_classes_are_closed_under_reversal_and_bound_who_sees_no_order() -> None:
    order, composition, appearance = (classes_of(variant, PHOTOGRAPHS) for variant in VARIANTS)
    assert (order.names, order.reverses) == (composition.names[:12], composition.reverses[:12])
    assert len(order.names) == 12 and len(composition.names) == len(set(composition.names)) == 24
    for classes in (order, composition, appearance):
        assert [classes.reverses[other] for other in classes.reverses] == list(range(len(classes.names)))
    named = dict(zip(composition.names, (composition.names[other] for other in composition.reverses), strict=True))
    assert named["pan right"] == "pan left"
    assert named["pan right, zoom in"] == "zoom out, pan left"
    assert named["pan right, zoom out"] == "zoom in, pan left"
    assert named["pan right, faster"] == "pan left, slower"
    assert [name for name in named if named[name] == name] == [
        "pan right, then left",
        "pan left, then right",
        "zoom in, then out",
        "zoom out, then in",
    ]
    assert order.order_blind_bound == (8 / 2 + 4) / 12
    assert composition.order_blind_bound == (20 / 2 + 4) / 24
    assert len(appearance.names) == len(CLASSES) + 3
    assert appearance.order_blind_bound == 5 / 8
    assert appearance.groups == (0, 0, 1, 1, 2, 2, 3, 4)


def test_every_path_backwards_is_the_reverse_class() -> None:
    assert (PATHS[:, ::-1] == PATHS[list(classes_of("composition", PHOTOGRAPHS).reverses)]).all()
    assert len({path.tobytes() for path in PATHS}) == len(PATHS)


@PROPERTY
@given(variants, parts, st.integers(0, 10**6), st.integers(0, 60), st.data())
def test_a_clip_depends_on_its_index_alone_and_classes_take_turns(
    variant: str, part: str, start: int, clips: int, data: st.DataObject
) -> None:
    split = data.draw(st.integers(0, clips))
    whole = draw_programs(variant, part, clips, PHOTOGRAPHS, start=start)
    first = draw_programs(variant, part, split, PHOTOGRAPHS, start=start)
    last = draw_programs(variant, part, clips - split, PHOTOGRAPHS, start=start + split)
    assert same(whole, Programs(*(np.concatenate(values) for values in zip(first, last, strict=True))))
    classes = len(classes_of(variant, PHOTOGRAPHS).names)
    assert whole.label.tolist() == [(start + clip) % classes for clip in range(clips)]


@PROPERTY
@given(st.sampled_from(MOTIONS), parts, st.integers(0, 10**5))
def test_clips_of_a_scene_differ_in_nothing_but_the_motion(variant: str, part: str, scene: int) -> None:
    classes = len(classes_of(variant, PHOTOGRAPHS).names)
    programs = draw_programs(variant, part, classes, PHOTOGRAPHS, start=classes * scene)
    assert programs.label.tolist() == programs.path.tolist() == list(range(classes))
    for field, values in programs._asdict().items():
        assert field in ("label", "path") or (values == values[0]).all(), field


@PROPERTY
@given(st.integers(0, 10**5))
def test_scenes_differ_from_one_another(scene: int) -> None:
    seen = set()
    for variant, part, number in itertools.product(VARIANTS, PARTS, (scene, scene + 1)):
        clips = 1 if variant == "appearance" else len(classes_of(variant, PHOTOGRAPHS).names)
        programs = draw_programs(variant, part, 1, PHOTOGRAPHS, start=clips * number)
        seen.add((programs.jitter.tobytes(), programs.place.tobytes()))
    assert len(seen) == 12


@pytest.mark.parametrize("variant", VARIANTS)
def test_nuisances_are_within_their_ranges_and_lean_to_no_side(variant: str) -> None:
    programs, hard = apart(variant, "train", 1000, PHOTOGRAPHS), DIFFICULTY[variant]
    percent = UNIT / 100

    def fills(values: Integers, low: float, high: float) -> None:
        slack = 0.06 * (high - low)
        assert round(low) <= values.min() < low + slack and high - slack < values.max() <= round(high)
        assert abs(values.mean() - (low + high) / 2) < slack / 2

    for values, most in (
        (programs.jitter, hard.jitter),
        (programs.wander, hard.wander),
        (programs.travel, hard.travel),
        (programs.drift, hard.drift),
        (programs.lean, hard.lean * 100 / 360 * 4),
    ):
        fills(values, -most * percent, most * percent)
    fills(programs.crop, *(most * percent for most in hard.crop))
    for axis, (low, high) in enumerate(
        (
            [most * percent for most in hard.pan],
            [most * percent for most in hard.pan],
            [np.log2(most / 100) * UNIT for most in hard.zoom],
            [most / 360 * 4 * UNIT for most in hard.roll],
        )
    ):
        fills(programs.amplitude[:, axis], low, high)
    sprites = np.bincount((programs.radius > 0).sum(1), minlength=3) / 10
    assert np.abs(sprites - (100 - hard.one_sprite - hard.two_sprites, hard.one_sprite, hard.two_sprites)).max() < 5
    assert (programs.texture != programs.photo[:, None]).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_have_photographs_or_regions_of_their_own(variant: str) -> None:
    train, test = (apart(variant, part, 100, PHOTOGRAPHS) for part in PARTS)
    assert not set(train.texture.flat) & set(test.texture.flat)
    if variant == "appearance":
        assert set(train.photo) == set(test.photo) == set(PHOTOGRAPHS.classes)
        assert train.region[:, 1].max() < test.region[:, 0].min()
    else:
        for part, programs in zip(PARTS, (train, test), strict=True):
            assert set(programs.photo) == set(PHOTOGRAPHS.of_split(part))


@pytest.mark.parametrize("variant", VARIANTS)
def test_reversing_changes_the_class_and_twice_changes_nothing(variant: str) -> None:
    classes, programs = classes_of(variant, PHOTOGRAPHS), apart(variant, "test", 48, PHOTOGRAPHS)
    once = reverse(programs, classes)
    assert once.label.tolist() == [classes.reverses[label] for label in programs.label]
    assert not np.array_equal(once.path, programs.path)
    assert same(reverse(once, classes), programs)


def test_an_unknown_variant_is_an_error() -> None:
    with pytest.raises(ValueError, match="variant must be one of"):
        draw_programs("speed", "train", 1, PHOTOGRAPHS)
