"""Release notes are the changelog's own section, and only of a version that tag, package and changelog agree on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import aim_adapters as aim
from scripts.release_notes import release_notes

ROOT = Path(__file__).resolve().parents[2]
CHANGELOG = """# Changelog

## [Unreleased]

## [0.2.0] - 2030-01-02

### Added

- Two.

## [0.1.0] - 2030-01-01

- One.

[Unreleased]: https://example.org/compare/v0.2.0...HEAD
"""


@pytest.mark.parametrize(("version", "notes"), [("0.2.0", "### Added\n\n- Two."), ("0.1.0", "- One.")])
def test_notes_are_the_section_of_the_version(version: str, notes: str) -> None:
    assert release_notes(f"v{version}", version=version, changelog=CHANGELOG) == notes


@pytest.mark.parametrize(
    ("tag", "version", "says"),
    [
        ("v0.2.1", "0.2.0", "the tag is v0.2.1, the package's version is 0.2.0"),
        ("0.2.0", "0.2.0", "expected the tag v0.2.0"),
        ("v0.3.0", "0.3.0", "has nothing under '## \\[0.3.0\\]'"),
        ("v0x2.0", "0x2.0", "has nothing under"),
    ],
)
def test_what_does_not_agree_is_refused(tag: str, version: str, says: str) -> None:
    with pytest.raises(SystemExit, match=says):
        release_notes(tag, version=version, changelog=CHANGELOG)


def test_the_script_knows_the_version_of_this_package() -> None:
    command = [sys.executable, ROOT / "scripts" / "release_notes.py", "v0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"the package's version is {aim.__version__}" in done.stderr
