"""Hold the API pages to the package: every public name is there, and reads well."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import aim_adapters as aim

ROOT = Path(__file__).resolve().parents[2]
PAGES = "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "api").glob("*.md")))


def test_every_public_name_has_its_entry() -> None:
    documented = set(re.findall(r"^::: aim_adapters\.(\w+)$", PAGES, re.MULTILINE))
    assert documented == set(aim.__all__)


@pytest.mark.parametrize("source", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: path.stem)
def test_docstrings_hold_markdown(source: Path) -> None:
    # The pages are Markdown: a role of another markup would be shown as it stands.
    assert not re.findall(r":(?:attr|class|data|exc|func|meth|mod):`[^`]*`", source.read_text(encoding="utf-8"))
