from __future__ import annotations

import numpy as np
import pytest

from benchmarks.motion.programs import DIFFICULTY, PATHS, VARIANTS, classes_of, draw_programs, reverse
from tests.benchmarks.scenes import CLASSES, scenes

PHOTOGRAPHS = scenes()


def test_classes_are_closed_under_reversal_and_bound_who_sees_no_order() -> None:
    order, appearance = (classes_of(variant, PHOTOGRAPHS) for variant in VARIANTS)
    assert len(order.names) == len(set(order.names)) == 24
    named = dict(zip(order.names, (order.names[other] for other in order.reverses), strict=True))
    assert all(named[named[name]] == name for name in named)
    assert named["pan right, zoom in"] == "zoom out, pan left"
    assert named["tilt up, roll left"] == "roll right, tilt down"
    assert named["pan right, faster"] == "pan left, slower"
    assert [name for name in named if named[name] == name] == [
        "pan right, then left",
        "pan left, then right",
        "zoom in, then out",
        "zoom out, then in",
    ]
    assert order.order_blind_bound == (20 / 2 + 4) / 24
    assert len(appearance.names) == len(CLASSES) + 3
    assert appearance.order_blind_bound == 5 / 8
    assert appearance.groups == (0, 0, 1, 1, 2, 2, 3, 4)


def test_every_path_backwards_is_the_reverse_class() -> None:
    reverses = classes_of("order", PHOTOGRAPHS).reverses
    assert (PATHS[:24, ::-1] == PATHS[list(reverses)]).all()
    assert len({path.tobytes() for path in PATHS}) == len(PATHS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_clip_depends_on_its_index_alone_and_classes_are_balanced(variant: str) -> None:
    many, few = (draw_programs(variant, "train", clips, PHOTOGRAPHS) for clips in (60, 7))
    rest = draw_programs(variant, "train", 53, PHOTOGRAPHS, start=7)
    for all_of, first, last in zip(many, few, rest, strict=True):
        assert np.array_equal(all_of, np.concatenate((first, last)))
    classes = len(classes_of(variant, PHOTOGRAPHS).names)
    for clips in range(1, 61):
        counts = np.bincount(many.label[:clips], minlength=classes)
        assert counts.max() - counts.min() <= 1
    test = draw_programs(variant, "test", 60, PHOTOGRAPHS)
    assert not np.array_equal(test.place, many.place)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nuisances_are_within_their_ranges_and_lean_to_no_side(variant: str) -> None:
    programs, hard = draw_programs(variant, "train", 2000, PHOTOGRAPHS), DIFFICULTY[variant]
    for values, most in (
        (programs.jitter, hard.jitter * 40.96),
        (programs.wander, hard.wander * 40.96),
        (programs.travel, hard.travel * 40.96),
        (programs.drift, hard.drift * 40.96),
    ):
        assert np.abs(values).max() <= round(most) and np.abs(values).max() > 0.95 * most
        assert abs(values.mean()) < 0.06 * most
    sprites = np.bincount((programs.radius > 0).sum(1), minlength=3) / 20
    assert np.abs(sprites - (100 - hard.one_sprite - hard.two_sprites, hard.one_sprite, hard.two_sprites)).max() < 5
    assert (programs.texture != programs.photo[:, None]).all()


def test_reversing_twice_changes_nothing() -> None:
    classes = classes_of("order", PHOTOGRAPHS)
    programs = draw_programs("order", "test", 48, PHOTOGRAPHS)
    twice = reverse(reverse(programs, classes), classes)
    assert all(np.array_equal(one, other) for one, other in zip(programs, twice, strict=True))


def test_an_unknown_variant_is_an_error() -> None:
    with pytest.raises(ValueError, match="variant must be one of"):
        draw_programs("speed", "train", 1, PHOTOGRAPHS)
