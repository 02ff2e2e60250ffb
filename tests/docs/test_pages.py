"""Hold every page in Markdown to what can be told without building it: tables, links, spelling."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"^( *)(```+)[^\n]*\n.*?^\1\2$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|(?:href|src|srcset)=\"([^\"]+)\"|<(https?://[^>]+)>")
WRITTEN = [
    *PAGES,
    *(file for room in ("src", "examples", "benchmarks", "scripts") for file in (ROOT / room).rglob("*.py")),
]
BRITISH = re.compile(
    r"colour|behaviour|neighbour|favour|honour|\bfibre|licence|catalogue|artefact|whilst|analys(?:ed?|ing)\b|\bcentre|"
    r"\bgrey(?!\")|\bper cent\b|(?:label|model|cancel|travel|channel)l(?:ed|ing|er)\b|"
    r"(?:custom|final|general|initial|local|maxim|minim|normal|optim|organ|parallel|penal|quant|random|real|recogn|serial|"
    r"special|standard|summar|synchron|token|util|visual)is(?:ed?|es|ers?|ing|ations?)\b",
    re.IGNORECASE,
)


def cells(line: str) -> list[str]:
    """Return the cells of a table's row as both GitHub and Python-Markdown split it."""
    row = line.strip().removeprefix("|")
    row = row[:-1] if row.endswith("|") and not row.endswith("\\|") else row
    return re.split(r"(?<!\\)\|", row)


def tables(text: str) -> Iterator[list[tuple[int, str]]]:
    """Yield the tables of a page: runs of lines that begin with a bar, with their numbers, outside of code."""
    outside = re.sub(
        r"^( *)(```+)[^\n]*\n.*?^\1\2$", lambda found: "\n" * found[0].count("\n"), text, flags=re.M | re.S
    )
    rows: list[tuple[int, str]] = []
    for number, line in enumerate([*outside.splitlines(), ""], 1):
        if line.lstrip().startswith("|"):
            rows.append((number, line))
        elif rows:
            yield rows
            rows = []


def faults(text: str) -> list[str]:
    """Return what is wrong with the tables of a page."""
    lines = ["", *text.splitlines(), ""]
    found = []
    for rows in tables(text):
        first, head = rows[0]
        width = len(cells(head))
        if len(rows) < 3 or not all(re.fullmatch(r"\s*:?-{3,}:?\s*", cell) for cell in cells(rows[1][1])):
            found.append(f"line {first}: no table, as a title, a rule and a row are missing")
        found += [f"line {n}: {len(cells(row))} cells, not {width}" for n, row in rows if len(cells(row)) != width]
        found += [f"line {n}: a row of nothing" for n, row in rows if not "".join(cells(row)).strip()]
        found += [
            f"line {n}: an open backtick in a cell" for n, row in rows if any(c.count("`") % 2 for c in cells(row))
        ]
        before, after = lines[first - 1], lines[rows[-1][0] + 1]
        # Python-Markdown reads a table that follows a line of text as more of that text.
        found += [f"line {first}: text touches the table"] if before.strip() or after.strip() else []
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_table_is_broken(page: Path) -> None:
    assert not faults(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "broken",
    [
        "| a | b |\n|---|---|\n| 1 |\n",
        "| a | b |\n|---|---|\n| 1 | 2 | 3 |\n",
        "| a | b |\n|---|---|\n| `x|y` | 2 |\n",
        "| a | b |\n|---|\n| 1 | 2 |\n",
        "| a | b |\n| 1 | 2 |\n| 3 | 4 |\n",
        "text\n| a | b |\n|---|---|\n| 1 | 2 |\n",
        "| a | b |\n|---|---|\n| 1 | 2 |\ntext\n",
        "| a | b |\n|---|---|\n\n| 1 | 2 |\n",
    ],
)
def test_a_broken_table_is_found(broken: str) -> None:
    assert faults(broken)
    assert not faults("| a | b |\n|---|---|\n| `x\\|y` | |\n\n```sh\n| a |\n```\n")


def links(page: Path) -> Iterator[str]:
    """Yield where a page points to."""
    for found in LINK.finditer(CODE.sub("", page.read_text(encoding="utf-8"))):
        yield next(filter(None, found.groups()))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    text = re.sub(r"^( *)(```+)[^\n]*\n.*?^\1\2$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted((ROOT / "examples").rglob("*.py"))], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        url = urlsplit(link)
        if url.scheme:
            assert url.scheme in ("https", "mailto"), link
            assert url.scheme == "mailto" or re.fullmatch(r"[\w-]+(\.[\w-]+)+(:\d+)?", url.netloc), link
            ours = re.fullmatch(r"/aim-adapters/aim-adapters/(?:blob|tree)/main/(.+)", url.path)
            assert ours is None or (ROOT / ours[1]).exists(), link
        elif link.startswith("#"):
            assert link[1:] in anchors(page), link
        else:
            target = page.parent / url.path
            assert target.exists(), link
            if url.fragment and "/docs/api/" not in target.resolve().as_posix():
                assert url.fragment in anchors(target), link


def test_the_spelling_is_american() -> None:
    found = {file: BRITISH.findall(file.read_text(encoding="utf-8")) for file in WRITTEN}
    assert not {file.name: words for file, words in found.items() if words}
