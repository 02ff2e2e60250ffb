"""What a bug report needs, and nothing that it must not hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import aim_adapters as aim
from tests.cli.cases import run

ISSUE = Path(__file__).parents[2] / ".github" / "ISSUE_TEMPLATE" / "bug.yml"


def test_versions_are_shown_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HOME": "/home/somebody",
        "HF_TOKEN": "hf_secret",
        "HF_ENDPOINT": "https://somebody:password@hub.example/api?token=hf_secret",
        "PYTHONPATH": "/opt/a:/home/somebody/b:/home/somebody",
        "COLUMNS": "60",
    }.items():
        monkeypatch.setenv(name, value)
    result = run("env")
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 60
    facts = json.loads(run("env", "--json").stdout)
    assert facts["aim-adapters"] == aim.__version__
    assert facts["packages"]["torch"]
    assert facts["environment"]["PYTHONPATH"] == "/opt/a:~/b:~"
    assert facts["environment"]["HF_ENDPOINT"] == "https://…@hub.example/api?…"
    for text in (result.stdout, json.dumps(facts)):
        assert not [secret for secret in ("hf_secret", "password", "somebody") if secret in text]


def test_a_pytorch_that_cannot_be_imported_is_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "av", None)
    result = run("env")
    assert result.exit_code == 0, result.stderr
    assert "PyTorch cannot be imported" in result.stdout
    assert "none: neither av nor torchcodec is installed" in result.stdout


def test_the_form_for_bugs_asks_for_it() -> None:
    assert "`aim-adapters env`" in ISSUE.read_text(encoding="utf-8")
