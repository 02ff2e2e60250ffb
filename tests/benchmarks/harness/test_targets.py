"""Hold targets to their limits."""

from __future__ import annotations

from benchmarks.harness import Target


def test_a_target_has_either_limit() -> None:
    assert Target("speed", 2.0, 2.0).met and not Target("speed", 1.9, 2.0).met
    assert Target("share", 0.4, at_most=0.4).met and not Target("share", 0.41, at_most=0.4).met
    assert str(Target("share", 0.41, at_most=0.4)) == "share: 0.41, target at most 0.4: MISSED"
