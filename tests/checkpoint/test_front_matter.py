"""Metadata of a README that could cost minutes or gigabytes, or lose a part of itself, is left as it is, at once."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import aim_adapters as aim
from aim_adapters.checkpoint import card as card_module
from aim_adapters.errors import AIMError
from aim_adapters.storage.files import CARD_NAME
from tests.checkpoint.card_cases import BEGIN, END, card, metadata
from tests.tiny import trained

ANCHORS = "\n".join([
    "a0: &a0 [x, x, x, x, x, x, x, x, x]",
    *(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 12)),
])  # fmt: skip
# The metadata, and what the warning says about it.
LEFT = {
    "aliases nested 12 deep": (ANCHORS, "alias"),
    "one alias": ("tags: &t\n- x\ndatasets: *t", "alias"),
    "a list inside itself": ("x: &x\n- *x", "alias"),
    "a merge of an alias": ("x: &x {license: mit}\n<<: *x", "alias"),
    "a merge": ("<<: {license: mit}", "merge key"),
    "merges nested deep": ("<<: {" * 40 + "a: b" + "}" * 40, "deep"),
    "lists nested deep": ("x: " + "[" * 60_000, "deep"),
    "mappings nested deep": ("x: " + "{a: " * 60 + "}" * 60, "deep"),
    "blocks nested deep": ("- " * 60 + "x", "deep"),
    "long": ("x: 1\n" + "# words\n" * 2**14, "characters"),
    "a key that comes twice": ("license: mit\nlicense: apache-2.0", "twice"),
    "a nested key that comes twice": ("x: {a: 1, a: 2}", "twice"),
    "two keys with one value": ("1: x\n0x1: y", "twice"),
    "a key that is a list": ("? [a, b]\n: x", "unhashable"),
    "code": ("x: !!python/object/apply:os.system [echo]", "constructor"),
    "a tag of one's own": ("x: !mine 1", "constructor"),
    "an integer that does not print": ("x: 0x" + "f" * 60_000, "digits"),
    "a decimal that does not convert": ("x: " + "9" * 60_000, "digits"),
    "a float of many parts": ("x: " + "1:" + "59:" * 2000 + "59.5", "large"),
    "a date that is none": ("x: 0001-01-01T00:00:00+24:00", "offset"),
    "NUL": ("x: \0", "special characters"),
    "two documents": ("a: 1\n--- {b: 2}\n...", "single document"),
}


@pytest.mark.parametrize("name", LEFT)
def test_metadata_that_is_not_read_stays(name: str) -> None:
    block, reason = LEFT[name]
    existing = f"---\n{block}\n---\nWords.\n"
    start = time.perf_counter()
    with pytest.warns(UserWarning, match=f"(?s)was left as it is: .*{reason}") as caught:
        text = card(existing=existing, tags=["z"])
    assert text.startswith(existing) and BEGIN in text
    assert len(str(caught[0].message)) < 500
    assert time.perf_counter() - start < 5


def test_readme_with_nested_aliases_is_saved_beside(tmp_path: Path) -> None:
    front = f"---\n{ANCHORS}\n---\n"
    (tmp_path / CARD_NAME).write_text(f"{front}Words.\n{BEGIN}\nold\n{END}\n")
    with pytest.warns(UserWarning, match="alias"):
        aim.save_adapters(trained(), tmp_path)
    text = (tmp_path / CARD_NAME).read_text()
    assert text.startswith(f"{front}Words.\n{BEGIN}") and "old" not in text and "| frames | 4 |" in text
    assert not any(aim.load_adapters(trained(), tmp_path))


def test_readme_beyond_all_measure_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_module, "_MOST", 2**10)
    existing = "---\nlicense: mit\n---\n" + "words " * 2**8
    with pytest.warns(UserWarning, match="the README has 1,557 characters, more than 1,024, and was left as it is"):
        assert card(existing=existing) == existing


@pytest.mark.parametrize("mark", [BEGIN, END, BEGIN + END[:-1], "---\n", "```\n", "<!-- aim-adapters:begin x -->"])
def test_many_marks_are_read_once(mark: str) -> None:
    text = card(existing=mark * (2**20 // len(mark)) + f"\n{BEGIN}\nold\n{END}\n")
    assert "old" not in text


def test_what_is_not_changed_is_written_as_it_was() -> None:
    """A new license makes the block anew; YAML reads ``1.10``, ``no`` and ``012`` as 1.1, False and 10."""
    block = "version: 1.10\nx: [no, 012, 0x1F, 1_000]\ndate: 2024-01-01T00:00:00Z\ntime: 12:30\nlong: |+\n  a\n\n"
    existing = f"---\ntags: [on, 1.50]\nlicense: mit\n{block}---\nWords.\n"
    text = card(existing=existing, license="apache-2.0")
    for word in ("1.10", "[no, 012, 0x1F, 1_000]", "2024-01-01T00:00:00Z", "- on\n", "- 1.50\n"):
        assert word in text
    before, after = (yaml.safe_load(readme.split("---\n")[1]) for readme in (existing, text))
    assert {name: after[name] for name in ("version", "x", "date", "time", "long")} == yaml.safe_load(block)
    assert after["license"] == "apache-2.0" and after["tags"][:2] == before["tags"] and "aim" in after["tags"]
    assert card(existing=text, license="apache-2.0") == text


@pytest.mark.parametrize("block", ["~", "null # none", "{}", "!!map {}"])
def test_metadata_that_says_nothing_is_replaced(block: str) -> None:
    text = card(existing=f"---\n{block}\n---\nWords.\n", tags=["z"])
    assert "z" in metadata(text)["tags"] and "\n---\nWords.\n" in text


PIECES = st.sampled_from([
    "---\n", "---", "\n", "\r\n", "\r", "  ", "\t", "- ", "? ", ": ", "a: ", "tags: ", "model-index:\n", "{", "}",
    "[", "]", ",", "&a ", "*a", "<<: ", "!!binary ", "!!set ", "!!omap ", "!!int ", "!!python/tuple ", "!x ", "|+\n",
    ">-\n", "'", '"', '"\\ud800"', "\\", "#", "%YAML 1.1\n", "...\n", "\ufeff", "\0", "\x85", "\u2028", "\U0001f600",
    "2024-02-30", "0x", ".nan", "1e400", "-.inf", "12:30:45", "null", "~", "=", BEGIN, END, "# T\n", "```\n",
])  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@given(st.lists(PIECES | st.text(max_size=3), max_size=30), st.booleans())
def test_no_readme_breaks_a_card(pieces: list[str], front: bool) -> None:
    existing = "---\n" * front + "".join(pieces).encode(errors="ignore").decode()
    arguments: dict[str, Any] = {"tags": ["z"], "datasets": ["k400"]}
    with _quiet():
        text = card(existing=existing, **arguments)
    text.encode()
    assert BEGIN in text and END in text
    with _quiet():
        try:
            card(existing=existing, metrics={"accuracy": 0.5}, **arguments)
        except AIMError as error:
            assert "README's model-index" in str(error)
