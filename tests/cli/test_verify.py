"""`verify`, whose exit code says whether something failed."""

from __future__ import annotations

import json

import pytest

from aim_adapters.analysis import Check, Verification
from tests.cli.cases import run


@pytest.mark.parametrize(("result", "code"), [("ok", 0), ("skipped", 0), ("failed", 1)])
def test_the_exit_code_says_whether_something_failed(monkeypatch: pytest.MonkeyPatch, result: str, code: int) -> None:
    monkeypatch.setattr("aim_adapters.analysis.verify", lambda _: Verification((Check("a", result, "b"),)))
    found = run("verify", "--json")
    assert found.exit_code == code
    assert json.loads(found.stdout)["checks"] == [{"check": "a", "result": result, "found": "b"}]


def test_an_unknown_model_is_said() -> None:
    found = run("verify", "timm:vit_tiny_patch16_24")
    assert (found.exit_code, found.stdout) == (1, "")
    assert "near it: timm:vit_tiny_patch16_224" in found.stderr
