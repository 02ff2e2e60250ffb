"""Print the changelog's section of the version that a tag names, once tag, package and changelog agree.

Usage: ``python scripts/release_notes.py v0.2.0``
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def release_notes(tag: str, *, version: str, changelog: str) -> str:
    """Return the changelog's section of a version.

    Args:
        tag: The tag that is released.
        version: The package's version.
        changelog: A text in the form of Keep a Changelog.

    Raises:
        SystemExit: Tag and version differ, or the changelog has no section of this version with something in it.
    """
    if tag != f"v{version}":
        raise SystemExit(f"the tag is {tag}, the package's version is {version}; expected the tag v{version}")
    found = re.search(rf"^## \[{re.escape(version)}\][^\n]*\n(.*?)(?=^## |^\[[^\]\n]+\]: |\Z)", changelog, re.M | re.S)
    if found is None or not found.group(1).strip():
        raise SystemExit(f"CHANGELOG.md has nothing under '## [{version}]'; move what is under [Unreleased] there")
    return found.group(1).strip()


def main() -> None:
    """Print the notes of the tag named on the command line."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    source = (ROOT / "src" / "aim_adapters" / "version.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', source, re.M)
    if version is None:
        raise SystemExit('src/aim_adapters/version.py has no `__version__ = "..."`')
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    print(release_notes(sys.argv[1], version=version.group(1), changelog=changelog))


if __name__ == "__main__":
    main()
