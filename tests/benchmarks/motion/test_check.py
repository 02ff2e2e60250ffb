from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.motion import check
from benchmarks.motion.check import digest_programs
from benchmarks.motion.programs import Programs, draw_programs
from tests.benchmarks.scenes import picture, scenes


def test_what_differs_from_the_frozen_clips_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("CLIPS", 12), ("FRAMES", 2), ("SIZE", 16), ("FROZEN", tmp_path / "frozen.json")):
        monkeypatch.setattr(check, name, value)
    monkeypatch.setattr(check, "load_photographs", lambda path, device: scenes())
    check.FROZEN.write_text('{"former frames": "0"}')
    assert check.main(["--photographs", "bundle"]) == 1
    shown = capsys.readouterr().out
    assert shown.count("expected nothing") == 1 + 2 * len(check.VARIANTS) and "nothing expected 0" in shown
    assert check.main(["--photographs", "bundle", "--freeze"]) == 0
    assert check.main(["--photographs", "bundle"]) == 0
    assert "expected" not in capsys.readouterr().out
    monkeypatch.setattr(check, "load_photographs", lambda path, device: scenes(y=picture(50)))
    assert check.main(["--photographs", "bundle"]) == 1
    lines = {line[:20].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert {name for name, line in lines.items() if "expected" in line} >= {"photographs", "order frames"}
    assert "as frozen" in lines["order programs"]


def test_digests_tell_programs_apart() -> None:
    programs = draw_programs("order", "test", 4, scenes())
    digest = digest_programs(programs, ("a",))
    assert digest == digest_programs(Programs(*(np.asfortranarray(values) for values in programs)), ("a",))
    assert digest != digest_programs(programs, ("b",))
    assert digest != digest_programs(programs._replace(drift=programs.drift + 1), ("a",))
